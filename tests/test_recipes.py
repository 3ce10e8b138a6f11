"""Recipes of the README and of manual pages leave pictures as they are, and those that gather files lose none."""

import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest
from helpers import jpeg, picture, tar

from vlmkit.cli.examples import examples

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CRON = ROOT / "man/vlmkit-cron.md"
SCHEDULE = re.compile(r"^(?:\S+ ){4}\S+  ")
GATHERS = re.compile(r"(^|[\s|;&])(cp|mv|ln|rm|rsync|install)\s|--(copy|link|move|into)\b")
COMMANDS = re.compile(r"vlmkit (search|classify|caption|ask|embed)\b")
NAME = "-rf IMG\n0001.png"
COLORS = ["red", "green", "blue", "yellow", "black", "white"]


def recipes() -> dict[str, str]:
    """Those that gather files, by the comment or description above them."""
    found = {example.what: example.line for rows in examples().values() for example in rows} | of_pages()
    return {name: lines for name, lines in found.items() if GATHERS.search(lines) and COMMANDS.search(lines)}


def of_pages() -> dict[str, str]:
    """What the README and vlmkit-cron(7) do with one's own pictures, without network and other models."""
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README.read_text(), re.DOTALL | re.MULTILINE))
    found = {}
    for name in ("Your own photos", "Recipes"):
        for block in re.findall(r"^```sh\n(.*?)^```", sections[name], re.DOTALL | re.MULTILINE):
            for recipe in re.split(r"^(?=# )", block, flags=re.MULTILINE):
                title, _, lines = recipe.partition("\n") if recipe.startswith("# ") else (name, "", recipe)
                found[title] = lines
    for block in re.findall(r"^```\n(.*?)^```", CRON.read_text(), re.DOTALL | re.MULTILINE):
        found |= {line: SCHEDULE.sub("", line) for line in block.splitlines()}
    return {name: lines for name, lines in found.items() if "vlmkit " in lines}


def state(folder: Path) -> dict[str, tuple]:
    """Everything below `folder`: its kind, rights and time, and what it holds or leads to."""
    found = {}
    for path in sorted(folder.rglob("*")):
        what = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        status = path.lstat()
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_mtime_ns, status.st_nlink, what)
    return found


def sums(folder: Path) -> set[str]:
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_there_are_such_recipes() -> None:
    assert len(recipes()) >= 3 and len(of_pages()) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes())
def test_no_picture_is_lost_for_its_name(shell, tmp_path: Path, name: str) -> None:
    """Folders of a camera that counts from 1 again and again; a week later once more, and then with nothing new."""
    line = recipes()[name]
    if "jq " in line and shutil.which("jq") is None:
        pytest.skip("it needs jq")
    taken, photos = set(), tmp_path / "photos"
    for week in (COLORS[:3], COLORS[3:], COLORS[3:]):
        shutil.rmtree(photos, ignore_errors=True)
        for number, color in enumerate(week):
            taken |= sums(picture(photos / f"a b/{number}'" / NAME, color).parent)
        (photos / "link").mkdir()
        (photos / "link" / NAME).symlink_to(photos / "a b/0'" / NAME)
        before = state(photos)
        shell("rm -rf home/XDG_DATA_HOME; vlmkit embed photos | vlmkit index")
        done = shell(line)
        assert done.stderr == b"" and state(photos) == before
        kept = [path for path in tmp_path.iterdir() if path.is_dir() and path.name not in ("photos", "home")]
        assert {sum for folder in kept for sum in sums(folder)} == taken
    assert sum(path.is_file() for folder in kept for path in folder.rglob("*")) == len(taken)


@pytest.mark.slow
@pytest.mark.parametrize("name", of_pages())
def test_pictures_stay_as_they_are(vlmkit, shell, environment: dict[str, str], tmp_path: Path, name: str) -> None:
    """In a home with pictures of equal and of awkward names, links to some, and links to nothing."""
    if "jq " in of_pages()[name] and shutil.which("jq") is None:
        pytest.skip("it needs jq")
    environment["HOME"] = str(tmp_path)
    pictures = tmp_path / "Pictures"
    for number, color in enumerate(COLORS):
        picture(pictures / f"a b/{number}'" / NAME, color)
    picture(pictures / "dog.jpg", "brown")
    (pictures / "again.jpg").symlink_to("dog.jpg")
    (pictures / "nothing.jpg").symlink_to("gone.jpg")
    (pictures / "a b/round").symlink_to(pictures)
    os.link(pictures / "dog.jpg", pictures / "-hard.jpg")
    (tmp_path / "photos").symlink_to("Pictures")
    tar(tmp_path / "shard-000.tar", {"a.jpg": jpeg("red"), "b.jpg": jpeg("blue")})
    vlmkit("index", stdin=vlmkit("embed", "Pictures", code=3).stdout)  # a link leads to nothing
    before, shard = state(pictures), (tmp_path / "shard-000.tar").read_bytes()
    # The page is served until it is stopped, at a port that may be taken here.
    done = shell(
        of_pages()[name].replace(
            "vlmkit serve ", "timeout --preserve-status 10 vlmkit serve --port 0 || test $? = 143 "
        )
    )
    assert done.returncode in (0, 1, 3) and b"Traceback" not in done.stderr, done.stderr.decode()
    assert state(pictures) == before and (tmp_path / "shard-000.tar").read_bytes() == shard
    vlmkit("index", "--verify")
