"""Archives are unpacked inside their folder, or not at all."""

import io
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from vlmkit.download.store import unpack
from vlmkit.io.http import FetchError


def tar_with(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for info in members:
            info.size = 4 if info.isreg() else 0
            file.addfile(info, io.BytesIO(b"evil") if info.isreg() else None)
    return path


def zip_with(path: Path, name: str, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo(name)
        info.filename = name  # ZipInfo tidies it
        info.external_attr = mode << 16
        file.writestr("good.txt", "good")
        file.writestr(info, "evil")
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "a\\..\\..\\evil", "..", "a/.."])
def test_members_outside_are_refused(tmp_path: Path, name: str) -> None:
    for archive in (zip_with(tmp_path / "a.zip", name), tar_with(tmp_path / "a.tgz", tarfile.TarInfo(name))):
        with pytest.raises(FetchError, match="outside of the folder"):
            list(unpack(archive, tmp_path / "deep/out"))
    assert everything(tmp_path) <= {"a.zip", "a.tgz"}


@pytest.mark.parametrize(
    "info",
    [
        link("a", "/etc"),
        link("a", "../.."),
        link("a", "/etc/passwd", tarfile.LNKTYPE),
        link("a", "", tarfile.FIFOTYPE),
        link("a", "", tarfile.CHRTYPE),
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, info: tarfile.TarInfo) -> None:
    with pytest.raises(FetchError, match="a link or a device"):
        list(unpack(tar_with(tmp_path / "a.tgz", info, tarfile.TarInfo("a/evil")), tmp_path / "out"))
    with pytest.raises(FetchError, match="a link or a device"):
        list(unpack(zip_with(tmp_path / "a.zip", "a", 0o120777), tmp_path / "out"))
    assert everything(tmp_path) == {"a.tgz", "a.zip"}


def test_a_link_that_was_there_before_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FetchError, match="leads out of"):
        list(unpack(zip_with(tmp_path / "a.zip", "a/evil"), tmp_path / "out"))
    assert everything(tmp_path / "elsewhere") == set()


def test_more_than_the_disk_has(tmp_path: Path) -> None:
    """A zip that says it unpacks to an exabyte is refused before anything is written."""
    archive = zip_with(tmp_path / "a.zip", "large")
    data = bytearray(archive.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    extra = b"\x01\x00\x08\x00" + (1 << 60).to_bytes(8, "little")  # the size as ZIP64 has it
    data[at + 24 : at + 28] = b"\xff" * 4
    data[at + 30 : at + 32] = len(extra).to_bytes(2, "little")
    name_end = at + 46 + int.from_bytes(data[at + 28 : at + 30], "little")
    data[name_end:name_end] = extra
    end = data.rindex(b"PK\x05\x06")
    size = int.from_bytes(data[end + 12 : end + 16], "little") + len(extra)
    data[end + 12 : end + 16] = size.to_bytes(4, "little")
    archive.write_bytes(data)
    with pytest.raises(FetchError, match="the disk has room"):
        list(unpack(archive, tmp_path / "out"))
    assert everything(tmp_path) == {"a.zip"}


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    whole = tar_with(tmp_path / "a.tgz", *(tarfile.TarInfo(f"m{i}") for i in range(50))).read_bytes()
    (tmp_path / "a.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FetchError, match=r"a\.tgz is damaged"):
        list(unpack(tmp_path / "a.tgz", tmp_path / "out"))
    data = bytearray(zip_with(tmp_path / "a.zip", "b").read_bytes())
    data[data.index(b"good", 40)] ^= 1  # in the bytes of good.txt, whose CRC-32 is then wrong
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(FetchError, match=r"a\.zip is damaged"):
        list(unpack(tmp_path / "a.zip", tmp_path / "out"))
    (tmp_path / "page.zip").write_bytes(b"<html>no archive</html>")
    with pytest.raises(FetchError, match=r"page\.zip is damaged"):
        list(unpack(tmp_path / "page.zip", tmp_path / "out"))


def test_what_comes_out_is_reported(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/", "")
        file.writestr("./a/ä.txt", "text")
    assert list(unpack(tmp_path / "a.zip", tmp_path / "out")) == [
        {"path": "a/ä.txt", "bytes": 4, "crc32": f"{zlib.crc32(b'text'):08x}"}
    ]
    assert (tmp_path / "out/a/ä.txt").read_text() == "text"
