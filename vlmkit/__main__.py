"""Entry point: signals become exit codes before anything heavy is imported."""

import sys
from typing import NoReturn

from vlmkit.errors import Stopped, catch


def run() -> NoReturn:
    """Run the command line and exit with its code."""
    try:
        catch()
        from vlmkit.cli.app import main

        code = main(sys.argv[1:])
    except Stopped as stop:
        code = stop.code
    sys.exit(code)


if __name__ == "__main__":
    run()
