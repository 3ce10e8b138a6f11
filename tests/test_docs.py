"""The documents say what the command table says, and every example works."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import own_environment
from generate import commands, documents, drifted
from hosted import Hosted
from picture import svg
from warm import Start

from vlmkit.cli.examples import examples

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TABLE = commands()
# What runs until it is stopped, as it is run here.
STOPPED = {"vlmkit serve": "timeout --preserve-status 10 vlmkit serve -q --port 0 || test $? = 143"}
# Of train: what it read and holds out, and what random towers may do; of ask: what mini is not made for; of --prune.
EXPECTED = re.compile(
    " rows read, | held out for validation, |retrieval fell below|trained on single pictures|records pruned$"
    "|: a head of \\d+ rows|reading alone gives"  # the last on a machine that is busy
)


def test_nothing_has_drifted() -> None:
    assert [str(path.relative_to(ROOT)) for path in drifted(ROOT)] == []


def test_drift_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(examples(), "embed", examples()["embed"][:1])
    assert [path.name for path in drifted(ROOT)] == ["vlmkit-embed.1"]


def test_every_page_is_installed() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "shared-data"
    ]
    generated = {str(path.relative_to(ROOT)) for path in documents(ROOT) if path.suffix != ".md"}
    assert generated == set(table)


@pytest.mark.parametrize("command", TABLE, ids=lambda command: command.name)
def test_every_command_is_documented(command) -> None:
    assert command.summary.endswith(".") and command.examples
    assert all(flag.help.endswith(".") and any(n.startswith("-") for n in flag.names) for flag in command.flags)
    texts = {path.name: text for path, text in documents(ROOT).items()}
    page = texts[f"vlmkit-{command.name}.1"]
    for flag in command.flags:
        assert flag.names[-1].replace("-", "\\-") in page
        assert all(flag.names[-1].lstrip("-") in texts[name] for name in ("vlmkit.bash", "_vlmkit", "vlmkit.fish"))


def test_man_pages_have_no_mistakes() -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed")
    for page in sorted((ROOT / "man").glob("*.[157]")):  # in pages: one without end has a limit that long tables reach
        done = subprocess.run([groff, "-t", "-man", "-Tutf8", "-rcR=0", "-ww", "-z", page], capture_output=True)
        assert done.returncode == 0 and done.stderr == b"", f"{page.name}: {done.stderr.decode()}"


def _code(page: str, language: str) -> str:
    """All blocks of that language of a page, in their order, as one program."""
    text = (ROOT / "man" / page).read_text()
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize(
    "page", sorted(path.name for path in (ROOT / "man").glob("*.md") if "```python" in path.read_text())
)
def test_the_python_of_a_guide_runs(page: str, vlmkit, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    vlmkit("index", "-i", "./photos.index", stdin=vlmkit("embed", "photos").stdout)
    program = _code(page, "python")
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_tutorial_runs(shell, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    done = shell("set -e\n" + _code("vlmkit-tutorial.md", "sh"))
    assert done.returncode == 0, done.stderr.decode()
    planned, answer, score, served = done.stdout.decode().splitlines()
    assert json.loads(planned)["stage"] == "align" and answer == served
    assert json.loads(score)["metric"] == "exact"


def test_import_vlmkit_is_light() -> None:
    """Type checkers see what it offers; nothing is imported before it is used."""
    code = "import sys; before = set(sys.modules); import vlmkit; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["vlmkit"]
    import vlmkit

    assert set(vlmkit.__all__) <= set(dir(vlmkit))
    assert all(getattr(vlmkit, name).__doc__ for name in vlmkit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vlmkit.nothing  # noqa: B018


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `vlmkit demo --keep` leaves, made twice."""
    folder = tmp_path_factory.mktemp("kept")
    for _ in range(2):
        words = ["vlmkit", "demo", "--keep", "a tour"]
        done = subprocess.run(words, capture_output=True, cwd=folder, env=own_environment(folder), timeout=300)
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout.decode().endswith("cd 'a tour' && export VLMKIT_INDEX=./demo.index\n")
    return folder / "a tour"


@pytest.mark.parametrize("command", [c for c in TABLE if c.name != "demo"], ids=lambda command: command.name)
def test_examples_work(command, kept: Path, environment: dict[str, str], hosted: Hosted, start: Start) -> None:
    """In order, as they build on each other; through a shell, but for those that a shell takes as they stand."""
    environment |= {"VLMKIT_INDEX": "./demo.index", "OPENAI_BASE_URL": hosted.url}
    for example in command.examples:
        line = STOPPED.get(example.line, example.line)
        if line.startswith("vlmkit ") and not set("|<>;&$*~") & set(line):
            done = start(kept, *shlex.split(line)[1:], environment=environment).done()
        else:
            words = ["bash", "-o", "pipefail", "-c", line]
            done = subprocess.run(words, capture_output=True, cwd=kept, env=environment, timeout=300)
        assert done.returncode == 0, f"{example.line}\n{done.stderr.decode()}"
        reported = [line for line in done.stderr.decode().splitlines() if not EXPECTED.search(line)]
        assert reported == [], f"{example.line}\n{done.stderr.decode()}"
        if example.prints:
            pattern = ".*".join(map(re.escape, example.prints.split("…"))) + "\n"
            assert re.fullmatch(pattern, done.stdout.decode(), re.DOTALL), (
                f"{example.line}\n{done.stdout.decode()[:1000]}"
            )


def test_the_picture_is_of_what_is_printed(kept: Path) -> None:
    """But for the last digit of a score, and the bytes of a photograph, which are the processor's and a library's."""
    picture = (ROOT / "man/search.svg").read_text()
    assert "url(http" not in picture
    made, shown = (re.sub(r"base64,[\w+/=]+|(?<=;0\.\d\d)\d", "", text) for text in (svg(kept), picture))
    assert made == shown


def test_demo_prints_each_line_and_finds_the_cup(environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(["vlmkit", "demo"], capture_output=True, cwd=tmp_path, env=environment, timeout=300)
    text = done.stdout.decode()
    assert done.returncode == 0, done.stderr.decode()
    assert text.count("\n$ vlmkit ") >= 5
    assert re.search(r'\$ vlmkit search [^\n]*"a cup of coffee"[^\n]*\n[^\n]*coffee\.png', text)
    assert list(tmp_path.iterdir()) == [] or [p.name for p in tmp_path.iterdir()] == ["home"]
