"""`--report-to`: the same figures that are logged, to a service or a folder for looking at curves."""

from pathlib import Path
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.train.log import Log

WHERE = ("wandb", "tensorboard")


def reporter(where: str | None, folder: Path) -> Log:
    """What takes each logged object, of the run in the folder above `folder`; nothing is done with `where` None.

    Raises VlmkitError for what is not there.
    """
    if where is None:
        return lambda figures: None
    if where not in WHERE:
        raise VlmkitError(f"unknown --report-to {where}", f"use {' or '.join(WHERE)}")
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()
    kind: Any = LOGGER_TYPE_TO_CLASS[where]
    arguments = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
    name = folder.parent.name
    try:
        tracker = kind(name, **arguments)
        tracker.start()
    except ImportError as error:
        raise VlmkitError(f"the package {error.name or where} is not installed", f"pip install {where}") from None

    def report(figures: dict[str, Any]) -> None:
        tracker.log({key: value for key, value in figures.items() if key != "step"}, step=figures["step"])

    return report
