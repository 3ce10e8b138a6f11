"""Entry point: signals become exit codes before anything heavy is imported."""

import os
import sys
from typing import NoReturn


def run() -> NoReturn:
    """Run the command line and exit with its code."""
    if sys.executable and sys.getfilesystemencoding() != "utf-8":
        # Names and texts are UTF-8 whatever the locale says. A process cannot change that after its start.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    if sys.argv[1:2] == ["--complete"]:  # a shell asks while one types
        from vlmkit.cli.values import write_values

        write_values(sys.argv[2:])
        sys.exit()
    from vlmkit.errors import Stopped, catch

    try:
        catch()
        from vlmkit.cli.app import main

        code = main(sys.argv[1:])
    except Stopped as stop:
        code = stop.code
    sys.exit(code)


if __name__ == "__main__":
    run()
