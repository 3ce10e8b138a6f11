"""Settings of the user: what config.toml may hold, what wins over it, and what `vlmkit config` tells."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest
from environment import variables
from helpers import records
from hosted import Hosted

from vlmkit.cli.app import command_line

ROOT = Path(__file__).parents[1]
EXAMPLE = re.compile(r"```toml\n(.*?)```.*?```\n(\$.*?)```", re.DOTALL)


@pytest.fixture
def configure(environment: dict[str, str]) -> Callable[[str], Path]:
    """Writes config.toml, and returns its path."""
    file = Path(environment["XDG_CONFIG_HOME"]) / "vlmkit/config.toml"

    def write(text: str | bytes) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


@pytest.fixture
def terminal(environment: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """Runs a command in a terminal without colours, and returns what it shows."""

    def show(*arguments: str) -> str:
        own = environment | {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "80"}
        text, code = pexpect.run(
            shlex.join(["vlmkit", *arguments]), cwd=str(tmp_path), env=own, withexitstatus=True, encoding="utf-8"
        )
        assert code == 0, text
        return "".join(line.rstrip() + "\n" for line in text.splitlines())

    return show


def settings(vlmkit: Any, *arguments: str) -> dict[str, Any]:
    return {f"{r['command']}.{r['option']}": r["value"] for r in records(vlmkit("config", *arguments).stdout)}


def test_flags_win_over_the_environment_and_that_over_the_file(vlmkit, configure, environment) -> None:
    def shown() -> list[str]:
        done = vlmkit("index", "--info", *flags, code=2)
        return re.findall(r"no index named (\w+)|no index at \S+/(\w+)", done.stderr.decode())

    flags: list[str] = []
    assert "default" in str(shown())
    configure('[index]\nindex = "filed"')
    assert "filed" in str(shown())
    environment["VLMKIT_INDEX"] = "exported"
    assert "exported" in str(shown())
    flags = ["-i", "typed"]
    assert "typed" in str(shown())


def test_a_search_takes_its_defaults_from_the_file(vlmkit, configure) -> None:
    def found(*flags: str) -> list[dict[str, Any]]:
        return records(vlmkit("search", "a dog", *flags).stdout)

    vlmkit("index", stdin=vlmkit("embed", "--text", stdin=b"a dog\na red car\na tree\n").stdout)
    configure("[search]\nk = 2\nrelative = true\n[all]\nbatch_size = 3")
    assert len(found()) == 2 and all("relative" in record for record in found())
    assert len(found("-k", "1")) == 1 and "relative" not in found("--no-relative")[0]
    assert re.search(r"-k N .*default: 2", " ".join(vlmkit("search", "--help").stdout.decode().split()))


def test_every_kind_of_value(vlmkit, configure) -> None:
    configure("""
        all = {device = "cpu", exclude = ["*.bak", "tmp/"]}
        [caption]
        temperature = 1
        length = "short"
        stats = true
        [ask]
        stream = false
        top_p = 0.5
        [eval]
        k = "1,2"
        [eval.retrieval]
        model = "clip-b32"
    """)
    found = settings(vlmkit)
    assert found == {
        "all.device": "cpu",
        "all.exclude": ["*.bak", "tmp/"],
        "caption.temperature": 1,
        "caption.length": "short",
        "caption.stats": True,
        "ask.stream": False,
        "ask.top-p": 0.5,
        "eval.k": "1,2",
        "eval.retrieval.model": "clip-b32",
    }
    assert settings(vlmkit, "embed") == {"embed.device": "cpu", "embed.exclude": ["*.bak", "tmp/"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[serch]\nk = 1", "no command is named serch: did you mean [search]?"),
        ("k = 1", "k stands in no table: put it under [COMMAND] or [all]"),
        ("search = 1", "search is not a table: write [search], and below it a line for each option"),
        ("[search]\nrelativ = true", "[search] has no option relativ: did you mean relative?"),
        ("[search]\nxyzzy = true", "[search] has no option xyzzy: see vlmkit search --help"),
        ("[search]\ndebug = true", "[search] has no option debug: see vlmkit search --help"),
        ("[all]\ndevcie = 'cpu'", "[all] has no option devcie: did you mean device?"),
        ("[models.a]\nmodel = 'mini'\nbaseurl = 'x'", "[models.a] has no option baseurl: did you mean base-url?"),
        ("[models]\na = 3", '[models] a names no model: write a = "ORG/NAME", or a table with model = …'),
        ("[search]\nk = 'many'", "[search] k = 'many' is not valid (Input should be a valid integer"),
        ("[search]\nk = 0", "[search] k = 0 is not valid (Input should be greater than or equal to 1)"),
        ("[search]\nk = true", "[search] k = True has the wrong type: give a text or a number"),
        ("[search]\nrelative = 1", "[search] relative = 1 has the wrong type: give true or false"),
        ("[search]\nwhere = 'a=b'", "[search] where = 'a=b' has the wrong type: give a list"),
        ("[search]\nindex = ['a']", "[search] index = ['a'] has the wrong type: give a text or a number"),
        ("[search]\ni = 'a'\nindex = 'b'", "[search] index is set already, by its other name: leave one of them out"),
        ("[search]\nmin-score = nan", "[search] min-score = nan: --min-score must be a number"),
        ("[search.fast]\nk = 1", "[search] has no option fast"),
        ("[search\nk = 1", "Expected ']' at the end of a table declaration (at line 1, column 8): correct it"),
        (b"\xff", "the text is not UTF-8: correct it, or name another file in $VLMKIT_CONFIG"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(vlmkit, configure, text: str | bytes, said: str) -> None:
    file = configure(text)
    for arguments in (["search", "x", "-k", "2"], ["config"]):
        done = vlmkit(*arguments, code=2).stderr.decode()
        assert done.startswith(f"vlmkit: {file}: {said}") and done.count("\n") == 1
    assert b"Usage" in vlmkit("search", "--help").stdout
    assert vlmkit("search", "--version").stdout and vlmkit("config", "--path").stdout.decode() == f"{file}\n"


def test_config_tells_all_that_is_wrong_and_a_command_what_concerns_it(vlmkit, configure) -> None:
    configure("[search]\nkk = 1\nrelative = 2\n[embed]\nfloats = 1\n[train.align]\nlr = 'x'\n[train.alig]\nlr = 1")
    lines = vlmkit("config", code=2).stderr.decode().splitlines()
    assert [re.findall(r"(\[[\w.]+\]) .*(floats|kk|relative|lr|alig)\b", line)[0] for line in lines] == [
        ("[embed]", "floats"),
        ("[search]", "kk"),
        ("[search]", "relative"),
        ("[train.align]", "lr"),
        ("[train]", "alig"),
    ]
    vlmkit("index", "--info", "-i", "none", code=2)
    assert b"config.toml" not in vlmkit("index", "--info", "-i", "none", code=2).stderr


def test_a_default_that_does_not_go_with_a_flag_is_named(vlmkit, configure) -> None:
    file = configure("[search]\nmin_score = 0.2")
    said = vlmkit("search", "--duplicates", code=2).stderr.decode()
    assert f"excludes --relative and --min-score (--min-score stands in [search] of {file}): use" in said


def test_unreadable(installed, configure) -> None:
    file = configure("")
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user may read everything")
    assert f"vlmkit: {file}: Permission denied: " in installed("index", "--info", code=2).stderr.decode()


def test_toml_is_only_read_where_there_is_a_file(tmp_path: Path, environment) -> None:
    code = "import sys; from vlmkit.cli.app import main; main(['index', '--info', '-i', './none']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path, env=environment)
    assert b"vlmkit.cli.defaults" in done.stdout.split() and b"tomllib" not in done.stdout.split()


def test_another_file_or_none(vlmkit, configure, environment, tmp_path: Path) -> None:
    configure("[search]\nk = 2")
    environment["VLMKIT_CONFIG"] = "/dev/null"
    assert vlmkit("config").stdout == b""
    (tmp_path / "mine.toml").write_text("[search]\nk = 7")
    environment["VLMKIT_CONFIG"] = "mine.toml"
    assert vlmkit("config", "search.k").stdout == b"7\n"
    environment["VLMKIT_CONFIG"] = "missing.toml"
    assert b"missing.toml: No such file" in vlmkit("search", "x", code=2).stderr


def test_names_for_models(vlmkit, configure, environment, hosted: Hosted, tmp_path: Path) -> None:
    configure(f"""
        [all]
        device = "cpu"
        [ask]
        max-tokens = 5
        rpm = 600
        [models]
        own = "mini"
        [models.home]
        model = "openai:tiny"
        base-url = "{hosted.url}"
        api-key-env = "HOME_KEY"
        max-tokens = 9
    """)
    (tmp_path / "home").mkdir(exist_ok=True)  # a folder of that name does not come before it
    assert b"HOME_KEY, of --api-key-env, is not set" in vlmkit("ask", "why?", "-m", "home", code=2).stderr
    environment["HOME_KEY"] = "sk-home"
    vlmkit("ask", "why?", "-m", "home")
    environment["VLMKIT_CHAT_MODEL"] = "home"
    vlmkit("ask", "why?", "--max-tokens", "3")
    assert [body["model"] for body in hosted.received] == ["tiny", "tiny"]
    assert [body["max_tokens"] for body in hosted.received] == [9, 3]
    assert hosted.headers[0]["authorization"] == "Bearer sk-home"
    (embedded,) = records(vlmkit("embed", "--text", "-m", "own", stdin=b"a dog\n").stdout)
    assert embedded["model"].startswith("mini@")


def test_names_for_the_models_of_a_service(configure, environment, monkeypatch: pytest.MonkeyPatch) -> None:
    configure("[models]\nown = 'mini'")
    monkeypatch.setenv("XDG_CONFIG_HOME", environment["XDG_CONFIG_HOME"])
    monkeypatch.delenv("VLMKIT_CONFIG")
    serve = command_line(["serve"]).commands["serve"]
    chosen = serve.make_context("serve", ["-m", "own", "-m", "b=own", "-m", "c=mini", "-m", "mini"]).params["model"]
    assert chosen == ["own=mini", "b=mini", "c=mini", "mini"]


def test_a_stage_takes_of_train_what_it_uses(vlmkit, configure) -> None:
    configure("[train]\nlora = 4")
    assert b"none.jsonl: no such file" in vlmkit("train", "align", "none.jsonl", "-o", "out", code=2).stderr
    configure("[train.align]\nlora = 4")
    said = b"config.toml: [train.align] has no option lora: "
    assert said in vlmkit("train", "align", "none.jsonl", "-o", "out", code=2).stderr


def test_one_value(vlmkit, configure, environment) -> None:
    configure("[search]\nwhere = ['width>9', 'height>9']\njson = true")
    environment["VLMKIT_MAX_PIXELS"] = "1000"
    answers = {
        "search.where": "width>9\nheight>9\n",
        "search.json": "true\n",
        "search.max-pixels": "1000\n",
        "embed.batch_size": "0\n",
    }
    assert {key: vlmkit("config", key).stdout.decode() for key in answers} == answers
    assert vlmkit("config", "search.html", code=1).stdout == b""
    assert b"there is no option search.kk: did you mean search.k?" in vlmkit("config", "search.kk", code=2).stderr
    assert b"there is no option serach: did you mean search?" in vlmkit("config", "serach", code=2).stderr
    everything = records(vlmkit("config", "--all").stdout)
    assert {record["source"] for record in everything} == {"default", "environment", "file"} and len(everything) > 200


def test_secrets_are_not_printed(vlmkit, configure) -> None:
    configure("""
        [ask]
        base-url = "https://me:hidden@example.org/v1"
        option = ["api_key=hidden", "detail=high"]
        [serve]
        token = "hidden"
        [models.home]
        model = "openai:tiny"
        base-url = "https://me:hidden@example.org/v1"
    """)
    shown = vlmkit("config").stdout.decode()
    assert "hidden" not in shown and shown.count("https://***@example.org/v1") == 2 and "detail=high" in shown


def test_on_a_terminal(terminal, configure, environment) -> None:
    assert "Nothing is set." in terminal("config")
    file = configure("[search]\nk = 2\n[models]\nclip = 'clip-b32'")
    environment["VLMKIT_INDEX"] = "holidays"
    shown = terminal("config").splitlines()
    assert [line.split() for line in shown[1:6]] == [
        ["index.index", "holidays", "$VLMKIT_INDEX"],
        ["search.k", "2", "[search]"],
        ["search.index", "holidays", "$VLMKIT_INDEX"],
        ["serve.index", "holidays", "$VLMKIT_INDEX"],
        ["models.clip", "clip-b32", "[models]"],
    ]
    assert shown[6] == str(file)


def test_the_example_of_the_manual(shell, configure) -> None:
    toml, session = EXAMPLE.search((ROOT / "man/vlmkit-config.md").read_text()).groups()  # type: ignore[union-attr]
    configure(toml)
    for line, printed in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", session, re.MULTILINE):
        pattern = ".*".join(map(re.escape, printed.split("…")))
        done = shell(line)
        assert re.fullmatch(pattern, done.stdout.decode(), re.DOTALL), f"{line}\n{done.stdout.decode()}"


def test_every_variable_that_is_read_is_documented() -> None:
    read = re.compile(
        r"""environ(?:\.get\(|\[)"(\w+)"(?!\] = )|"(\w+)" in os\.environ|^    "([A-Z_]+)": "\w+",""", re.MULTILINE
    )
    sources = [path for path in (ROOT / "vlmkit").rglob("*.py") if "recipes" not in path.parts]
    found = {next(filter(None, names)) for path in sources for names in read.findall(path.read_text()) if any(names)}
    listed = {name for row in variables(command_line().commands) for name in row.name.split(", ")}
    assert {"TMUX", "RANK", "DO_NOT_TRACK"} <= found <= listed
    assert {"VLMKIT_INDEX", "VLMKIT_EMBED_MODEL", "OPENAI_API_KEY", "XDG_CONFIG_HOME"} <= listed
