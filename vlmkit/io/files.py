"""The output folder: written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmkit.errors import VlmkitError


def check_free(folder: Path) -> None:
    """Raises VlmkitError if `folder` exists and is not an empty folder, or cannot be made."""
    if folder.is_dir() and not folder.is_symlink():
        if any(folder.iterdir()):
            raise VlmkitError(f"{folder} is not empty", "name a new folder with -o, or remove this one")
    elif os.path.lexists(folder):
        raise VlmkitError(f"{folder} exists and is no folder", "name a new folder with -o")
    if not folder.absolute().parent.is_dir():
        raise VlmkitError(f"{folder.absolute().parent} does not exist", "make that folder first")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block ends well, else it is removed."""
    check_free(folder)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
    try:
        yield made
        made.chmod(0o777 & ~_umask())
        check_free(folder)
        made.replace(folder.absolute())
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
