"""Tar files: their members, also those of tar files inside, are parts of the file that are opened again by path."""

import posixpath
import tarfile
from collections.abc import Iterator
from functools import lru_cache

from vlmkit.io.sources import MissingMember, PictureError, Source

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
COMPRESSED_TAR = "a compressed tar, whose members cannot be opened one by one; unpack it to .tar first"
MAX_DEPTH = 8  # tar files in tar files


class TarReader:
    """The regular members of an uncompressed tar."""

    separator = "/"
    holds_files = True

    def members(self, file: Source) -> Iterator[tuple[str, Source]]:
        """In bounded memory. Names are relative, without `.` and `..`."""
        end = file.offset + file.size
        try:
            with open(file.path, "rb") as stream:
                stream.seek(file.offset)
                if stream.read(6).startswith(COMPRESSED):
                    raise PictureError(COMPRESSED_TAR)
                stream.seek(file.offset)
                with tarfile.open(fileobj=stream, mode="r:") as opened:
                    while member := opened.next():
                        opened.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                        if member.offset_data + (member.size if member.isreg() else 0) > end:
                            raise PictureError(f"the tar file ends inside {member.name}")
                        if member.isreg() and member.sparse is None:
                            name = posixpath.normpath("/" + member.name).lstrip("/")
                            yield name, Source(file.path, member.offset_data, member.size, float(member.mtime))
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise PictureError(f"damaged tar file ({error})") from None

    def open(self, file: Source, member: str) -> Source:
        found, is_intact = _by_name(file)
        if member not in found:
            raise MissingMember if is_intact else PictureError("not in the intact part of the tar file")
        return found[member]


@lru_cache(maxsize=8)
def _by_name(tar: Source) -> tuple[dict[str, Source], bool]:
    """The members by name, and whether the tar could be read to its end; those before the damage can be opened."""
    found: dict[str, Source] = {}
    try:
        for name, source in _nested(tar, "", 1):
            found[name] = source
    except PictureError:
        return found, False
    return found, True


def _nested(tar: Source, prefix: str, depth: int) -> Iterator[tuple[str, Source]]:
    for name, source in TarReader().members(tar):
        yield prefix + name, source
        if is_tar_name(name) and depth < MAX_DEPTH:
            yield from _nested(source, f"{prefix}{name}/", depth + 1)


def is_tar_name(name: str) -> bool:
    return name.lower().endswith(".tar")


def is_compressed_tar_name(name: str) -> bool:
    return name.lower().endswith(COMPRESSED_SUFFIXES)
