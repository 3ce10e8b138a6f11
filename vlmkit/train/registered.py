"""Towers by short names, from Python packages that carry the weights, so that training starts without a download."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmkit.errors import VlmkitError

VISION = "efficientnet-lite0"
TEXT = "all-minilm-l6-v2"
FULL = 30_522  # pieces in the vocabulary of BERT; those of other scripts are left out


@contextmanager
def towers(vision: str, text: str) -> Iterator[tuple[str, str]]:
    """`vision` and `text` as training takes them: the registered names become folders that live as long as the block.

    Raises VlmkitError where the package behind a name is not installed.
    """
    from vlmkit.models.mini.towers import text_tower, vision_tower

    with tempfile.TemporaryDirectory(prefix="vlmkit-towers-") as name:
        try:
            if vision == VISION:
                vision = str(vision_tower(Path(name) / "vision"))
            if text == TEXT:
                text = str(text_tower(Path(name) / "text", words=(), size=FULL))
        except ModuleNotFoundError as error:
            what = f"the package {error.name} is not installed"
            raise VlmkitError(what, "pip install 'vlmkit[recipe]', or name towers with --vision and --text") from None
        yield vision, text
