"""What one command writes, each other reads, as JSONL and as safetensors."""

import shutil
from pathlib import Path

import inside
import pytest
from conftest import own_environment
from helpers import records

pytestmark = pytest.mark.slow

NAMES = ["chelsea.png", "coffee.png", "rocket.jpg"]
MAKERS = {
    "embed": ["embed", "few"],
    "dump": ["index", "-i", "./few.index", "--dump"],
    "search": ["search", "-i", "./few.index", "an animal", "-k", "3"],
    "classify": ["classify", "few", "--labels", "cat,cup,rocket"],
    "caption": ["caption", "few", "--max-tokens", "30"],
    "ask": ["ask", "few", "what is it?", "--max-tokens", "30"],
}
TAKERS = {
    "embed": ["embed"],
    "index": ["index", "-i", "./of-pipe.index"],
    "search": ["search", "-i", "./few.index", "--queries", "-", "-k", "1"],
    "classify": ["classify", "--labels", "cat,cup,rocket"],
    "caption": ["caption", "--max-tokens", "30"],
    "ask": ["ask", "what is it?", "--max-tokens", "30"],
}

# Fields that a command writes anew, and that a vector leaves behind.
MADE = {"model", "embedding", "label", "labels", "question", "caption", "caption_model", "answer", "answer_model"}
MADE |= {"finish", "confidence"}


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """The folder, and by maker what it writes of three photographs."""
    folder = tmp_path_factory.mktemp("pipes")
    (folder / "few").mkdir()
    for name in NAMES:
        shutil.copy(photos / name, folder / "few" / name)

    def run(*arguments: str, stdin: bytes = b"") -> bytes:
        done = inside.run([*arguments], folder, own_environment(folder), stdin)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    run("index", "-i", "./few.index", stdin=run("embed", "few"))
    return folder, {name: run(*words) for name, words in MAKERS.items()}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("form", ["jsonl", "safetensors"])
@pytest.mark.parametrize("maker", MAKERS)
def test_every_pair(made: tuple[Path, dict[str, bytes]], maker: str, form: str, taker: str) -> None:
    folder, outputs = made
    written = outputs[maker]
    before = records(written)
    if form == "safetensors":
        written = inside.run(["embed", "--format", form], folder, own_environment(folder), written).stdout
        assert written[8:10] == b'{"'
    shutil.rmtree(folder / "of-pipe.index", ignore_errors=True)
    done = inside.run(TAKERS[taker], folder, own_environment(folder), written)
    if taker == "index" and form == "jsonl" and "embedding" not in before[0]:
        assert done.returncode == 3 and b"embed" in done.stderr, "what has no vector is named"
        return
    assert (done.returncode, done.stderr) == (0, b"")
    if taker == "index":
        done = inside.run([*TAKERS["index"], "--dump"], folder, own_environment(folder), b"")
    after = {row["id"]: row for row in records(done.stdout)}
    assert len(after) == len(before)
    if taker != "search":  # whose records are those it found
        for row in before:
            assert {name: row[name] for name in row.keys() - MADE}.items() <= after[row["id"]].items()
