"""HEIC and JPEG XL, by packages that teach Pillow to open them."""

from typing import TYPE_CHECKING, Any

from vlmkit.io.images import decode

if TYPE_CHECKING:
    from PIL.Image import Image

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL ")


class HeicDecoder:
    def accepts(self, data: bytes) -> bool:
        return data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS

    def decode(self, data: bytes, size: int | None) -> tuple["Image", dict[str, Any]]:
        from pillow_heif import register_heif_opener

        register_heif_opener(thumbnails=False)
        return decode(data, size, ["HEIF", "AVIF"])


class JxlDecoder:
    def accepts(self, data: bytes) -> bool:
        return data.startswith(JXL_STARTS)

    def decode(self, data: bytes, size: int | None) -> tuple["Image", dict[str, Any]]:
        import pillow_jxl  # noqa: F401 (registers itself)

        return decode(data, size, ["JXL"])
