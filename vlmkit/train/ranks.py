"""Several processes of one run, as torchrun starts them: the first one speaks for all."""

import contextlib
import os
from collections.abc import Iterator

from vlmkit.errors import VlmkitError
from vlmkit.streams import AlreadyTold


def rank() -> int:
    """Which of the processes this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def first_speaks() -> Iterator[None]:
    """For what all processes do alike: what the others have to say, their errors too, the first one says."""
    if rank() == 0:
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    except VlmkitError:
        raise AlreadyTold from None
