"""Pictures in a text file, one line each: a name and a colour, as in `sky #87ceeb`."""

import io

from PIL import Image

from vlmkit.io.sources import Memory, MissingMember, PictureError


class SwatchReader:
    """`paints.swatch#sky` is a picture of one colour."""

    separator = "#"
    holds_files = False

    def members(self, file):
        for line in file.read().decode().splitlines():
            name, _, color = line.partition(" ")
            try:
                picture = Image.new("RGB", (16, 16), color)
            except ValueError as error:
                raise PictureError(f"{name}: {error}") from None
            data = io.BytesIO()
            picture.save(data, "PNG")
            yield name, Memory(data.getvalue(), file.mtime)

    def open(self, file, member):
        for name, source in self.members(file):
            if name == member:
                return source
        raise MissingMember
