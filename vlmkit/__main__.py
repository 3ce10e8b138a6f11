"""Entry point: signals become exit codes before anything heavy is imported."""

import signal
import sys
from types import FrameType
from typing import NoReturn

from vlmkit.errors import Exit, Stopped


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    # A second signal must not break the clean-up that the first one started.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped(Exit.INTERRUPTED if number == signal.SIGINT else Exit.TERMINATED)


def run() -> NoReturn:
    """Run the command line and exit with its code."""
    try:
        signal.signal(signal.SIGINT, _stop)
        signal.signal(signal.SIGTERM, _stop)
        from vlmkit.cli import main

        code = main(sys.argv[1:])
    except Stopped as stop:
        code = stop.code
    sys.exit(code)


if __name__ == "__main__":
    run()
