"""Kinds of files that are read by packages which may be missing, and the decoders of those that are one picture.

A new kind is one line in KINDS, and one file with its `Decoder`, or with its `sources.Reader` where it is a container.
Packages add decoders by entry points of the group `vlmkit.decoders`, whose name is the suffix without its dot.
"""

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vlmkit.io.registry import Registry

if TYPE_CHECKING:
    from PIL.Image import Image


class Kind(NamedTuple):
    """`name` in messages, suffixes, the `module` that must be there, what pip installs it by, and the decoder."""

    name: str
    suffixes: str
    module: str
    install: str
    decoder: str = ""


RAW = "3fr arw cr2 cr3 crw dcr dng erf fff iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
# JPEG XL: the package is under the GPL, so no extra of ours brings it.
KINDS = [
    Kind("HEIC", "heic heif hif", "pillow_heif", "vlmkit[heic]", "vlmkit.io.pillow_plugins:HeicDecoder"),
    Kind("JPEG XL", "jxl", "pillow_jxl", "pillow-jxl-plugin", "vlmkit.io.pillow_plugins:JxlDecoder"),
    Kind("SVG", "svg svgz", "resvg_py", "vlmkit[svg]", "vlmkit.io.svg:SvgDecoder"),
    Kind("RAW", RAW, "rawpy", "vlmkit[raw]", "vlmkit.io.raw:RawDecoder"),
]
KIND_BY_SUFFIX = {suffix: kind for kind in KINDS for suffix in kind.suffixes.split()}
DECODED = {f".{suffix}" for suffix, kind in KIND_BY_SUFFIX.items() if kind.decoder}
BUILT_IN = {kind.name: kind for kind in KINDS if kind.decoder}
DECODERS = Registry("vlmkit.decoders", {name: kind.decoder for name, kind in BUILT_IN.items()})


class Decoder(Protocol):
    """Decodes one kind of picture that Pillow does not. It is made without arguments."""

    def accepts(self, data: bytes) -> bool:
        """Whether `data`, a whole file, is of this kind: quickly, and without the package that decodes it."""

    def decode(self, data: bytes, size: int | None) -> tuple["Image", dict[str, Any]]:
        """The picture as RGB, upright, and `width` and `height` of the original, with `taken`, `camera`, `lat`, `lon`
        where they are known. With `size` a smaller one will do, with no side under `size`. May raise anything.
        """


@cache
def is_installed(kind: Kind) -> bool:
    """Whether the package that reads this kind is there; it is not imported."""
    return find_spec(kind.module) is not None


@cache
def is_decoded(suffix: str) -> bool:
    """Whether there is a decoder, and its package, for files with this suffix (in lower case, without the dot)."""
    if (kind := KIND_BY_SUFFIX.get(suffix)) is not None:
        return bool(kind.decoder) and is_installed(kind)
    return suffix in DECODERS.plugins()
