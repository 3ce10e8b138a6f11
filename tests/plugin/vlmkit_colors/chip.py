"""Pictures of one colour, as in `CHIP 640 480 #87ceeb`."""

from PIL import Image


class ChipDecoder:
    """Decodes `paint.chip`."""

    def accepts(self, data):
        return data.startswith(b"CHIP ")

    def decode(self, data, size):
        _, width, height, color = data.decode().split()
        return Image.new("RGB", (size or 16, size or 16), color), {"width": int(width), "height": int(height)}
