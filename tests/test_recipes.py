"""Recipes of the README and examples of the help that copy, move or remove files lose none and tell no error."""

import hashlib
import re
import shutil
from pathlib import Path

import pytest
from helpers import picture

from vlmkit.cli.examples import examples

README = Path(__file__).parents[1] / "README.md"
GATHERS = re.compile(r"(^|[\s|;&])(cp|mv|ln|rm|rsync|install)\s|--(copy|link|move|into|to)\b")
COMMANDS = re.compile(r"vlmkit (search|classify|caption|ask|embed)\b")
COLORS = ["red", "green", "blue", "yellow", "black", "white"]


def recipes() -> dict[str, str]:
    """Those that gather files, by the comment or description above them."""
    found = {example.what: example.line for rows in examples().values() for example in rows}
    for block in re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE):
        for recipe in re.split(r"^(?=# )", block, flags=re.MULTILINE):
            name, _, lines = recipe.partition("\n")
            found[name] = lines
    return {name: lines for name, lines in found.items() if GATHERS.search(lines) and COMMANDS.search(lines)}


def sums(folder: Path) -> set[str]:
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_there_are_such_recipes() -> None:
    assert len(recipes()) >= 3


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
            taken |= sums(picture(photos / f"a b/{number}'/IMG 0001.png", color).parent)
        (photos / "link").mkdir()
        (photos / "link/IMG 0001.png").symlink_to(photos / "a b/0'/IMG 0001.png")
        shell("rm -rf home/XDG_DATA_HOME; vlmkit embed photos | vlmkit index")
        done = shell(line)
        assert done.stderr == b""
        kept = [path for path in tmp_path.iterdir() if path.is_dir() and path.name not in ("photos", "home")]
        assert {sum for folder in kept for sum in sums(folder)} == taken
    assert sum(path.is_file() for folder in kept for path in folder.rglob("*")) == len(taken)
