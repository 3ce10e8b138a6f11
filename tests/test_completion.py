"""Completions in real shells: what each offers, and how they get there."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
from helpers import jsonl

SHELLS = ("bash", "zsh", "fish")
FILES = {"bash": "vlmkit.bash", "zsh": "_vlmkit", "fish": "vlmkit.fish"}
COMPLETIONS = Path(__file__).parents[1] / "vlmkit/cli/completions"
Complete = Callable[[str], set[str]]

CATCH = r"""
autoload -Uz compinit; compinit -u -D; LISTMAX=100000
caught=()
compadd() {
    if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)* ]]; then builtin compadd "$@"; return; fi
    local -a __matches; builtin compadd -A __matches "$@"; caught+=("${__matches[@]}"); builtin compadd "$@"
}
_report() {
    print -rl -- $caught > $HOME/matches.part; mv $HOME/matches.part $HOME/matches
    caught=(); compstate[insert]=""; compstate[list]=""
}
catch() { comppostfuncs=(_report); zle complete-word; BUFFER="" }
zle -N catch; bindkey "^I" catch
print rea""dy
"""


@pytest.fixture
def home(tmp_path: Path, environment: dict[str, str]) -> Path:
    """A folder with a file of answers, and a home with a model of the user's own."""
    (tmp_path / "home/data/vlmkit/datasets").mkdir(parents=True)
    (tmp_path / "home/config/vlmkit").mkdir(parents=True)
    (tmp_path / "home/config/vlmkit/config.toml").write_text('[models]\nmylittle = "./trained"\n')
    (tmp_path / "answers.jsonl").write_bytes(jsonl({"id": "1", "answer": "a", "kind": "b", "more": {"deep": 1}}))
    environment |= {"XDG_DATA_HOME": f"{tmp_path}/home/data", "XDG_CONFIG_HOME": f"{tmp_path}/home/config"}
    environment |= {"HOME": f"{tmp_path}/home", "TERM": "dumb"}
    return tmp_path


@pytest.fixture
def indexes(home: Path, vlmkit) -> None:
    rows = vlmkit("embed", "--text", stdin=b"a cat\ndog\n").stdout
    for name in ("holidays", "home"):
        vlmkit("index", "-i", name, stdin=rows)


def program(shell: str) -> str:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    return path


@pytest.fixture(params=SHELLS)
def complete(request: pytest.FixtureRequest, home: Path, environment: dict[str, str]) -> Complete:
    """What the shell offers for the last word of a line."""
    made = {"bash": in_bash, "zsh": in_zsh, "fish": in_fish}[request.param]
    return made(program(request.param), home, environment)


def in_bash(bash: str, folder: Path, environment: dict[str, str]) -> Complete:
    def complete(line: str) -> set[str]:
        words = " ".join(f"'{word}'" for word in line.split(" "))
        script = f"source {COMPLETIONS}/vlmkit.bash; COMP_WORDS=({words}); COMP_CWORD={line.count(' ')}; _vlmkit"
        script += "; printf '%s\\n' \"${COMPREPLY[@]}\""
        done = subprocess.run([bash, "--norc", "-c", script], capture_output=True, cwd=folder, env=environment)
        assert done.stderr == b""
        return set(filter(None, done.stdout.decode().splitlines()))

    return complete


def in_fish(fish: str, folder: Path, environment: dict[str, str]) -> Complete:
    def complete(line: str) -> set[str]:
        script = f"source {COMPLETIONS}/vlmkit.fish; complete -C '{line}'"
        done = subprocess.run([fish, "--no-config", "-c", script], capture_output=True, cwd=folder, env=environment)
        assert done.stderr == b""
        return {entry.split("\t")[0] for entry in done.stdout.decode().splitlines()}

    return complete


def in_zsh(zsh: str, folder: Path, environment: dict[str, str]) -> Complete:
    (folder / "home/setup.zsh").write_text(f"fpath=({COMPLETIONS} $fpath)\n{CATCH}")
    own: dict = environment
    terminal = pexpect.spawn(zsh, ["-f", "-i"], cwd=str(folder), env=own, timeout=60, dimensions=(24, 200))
    terminal.sendline(f"source {folder}/home/setup.zsh")
    terminal.expect("ready")
    matches = folder / "home/matches"

    def complete(line: str) -> set[str]:
        matches.unlink(missing_ok=True)
        terminal.send(f"{line}\t")
        deadline = time.monotonic() + 30
        while not matches.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        typed = line.rpartition(" ")[2].rpartition("=")[2]
        return {word for word in matches.read_text().splitlines() if word and word.startswith(typed)}

    return complete


def test_zsh_takes_what_is_printed(tmp_path: Path, environment: dict[str, str]) -> None:
    """Read by source, it registers itself instead of completing at once."""
    script = f"autoload -Uz compinit; compinit -u -D; source {COMPLETIONS}/_vlmkit; print $_comps[vlmkit]"
    done = subprocess.run([program("zsh"), "-f", "-c", script], capture_output=True, cwd=tmp_path, env=environment)
    assert done.stdout == b"_vlmkit\n" and done.stderr == b""


def test_commands_options_and_fixed_values(complete: Complete) -> None:
    assert complete("vlmkit cl") == {"classify"}
    assert complete("vlmkit embed --batch") == {"--batch-size"}
    assert complete("vlmkit embed --format s") == {"safetensors"}
    assert complete("vlmkit embed --device c") == {"cpu", "cuda"}
    assert complete("vlmkit train c") == {"contrastive", "check"}
    assert complete("vlmkit eval ch") == {"choice", "chartqa"}
    assert complete("vlmkit --show-completion ") == {"bash", "zsh", "fish"}
    assert complete("vlmkit train align --connector m") == {"mlp"}
    assert complete("vlmkit train align --preset s") == {"small"}
    assert complete("vlmkit download coco") == {"coco-captions"}
    assert complete("vlmkit index --type i") == {"ivf", "ivfpq"}


def test_a_stage_and_a_task_offer_their_own(complete: Complete) -> None:
    assert complete("vlmkit train contrastive a.tar --te") == {"--text", "--text-epochs", "--text-lr", "--text-layers"}
    assert complete("vlmkit train align --te") == {"--template"} and complete("vlmkit train align --llm") == {"--llm"}
    assert complete("vlmkit train prefer --beta") == {"--beta", "--beta2"}
    assert complete("vlmkit eval vqa --metric e") == {"exact"}
    assert complete("vlmkit eval caption --metric ro") == {"rouge_l"}
    assert complete("vlmkit eval anls --variant ") >= {"rrc", "paper"}
    assert complete("vlmkit eval vqa --tok") == set() and complete("vlmkit eval caption --tok") == {"--tokenizer"}
    assert complete("vlmkit index --dev") == set()


@pytest.mark.slow
def test_what_this_machine_has(indexes: None, complete: Complete) -> None:
    assert complete("vlmkit search -i h") >= {"holidays", "home"} and complete("vlmkit search -i data") == set()
    assert complete("vlmkit search cat --index hol") == {"holidays"}
    assert {"mini", "mylittle"} <= complete("vlmkit embed -m m")
    assert complete("vlmkit caption -m smolvlm") == {"smolvlm-256m"}
    assert {name.rstrip("=") for name in complete("vlmkit search -i home --where te")} == {"text"}
    if not complete.__qualname__.startswith("in_bash"):  # of bash: while one types, below
        for line in ("vlmkit search -i home --where text=d", "vlmkit search -i home --where=text=d"):
            assert {value.rpartition("=")[2] for value in complete(line)} == {"dog"}
    assert complete("vlmkit eval vqa answers.jsonl --by k") == {"kind"}
    assert complete("vlmkit eval vqa answers.jsonl --by more.") == {"more.deep"}


def test_fields_are_told_quickly_and_without_anything_heavy(home: Path, environment: dict[str, str]) -> None:
    code = (
        "import sys, atexit; from vlmkit.__main__ import run; sys.argv[1:] = ['--complete', 'fields', 'eval', "
        "'answers.jsonl']; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); run()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=home, env=environment)
    assert done.stdout.split() == ["answer", "id", "kind", "more", "more.deep"]
    assert not {"typer", "numpy", "torch", "rich"} & set(done.stderr.split())


@pytest.mark.parametrize("words", [[], ["fields", "search"], ["fields", "eval", "gone.jsonl"], ["nothing"], ["models"]])
def test_what_cannot_be_told_offers_nothing(installed, words: list[str]) -> None:
    done = installed("--complete", *words)
    assert done.stdout == done.stderr == b""


@pytest.mark.parametrize("shell", SHELLS)
def test_completions_parse(shell: str) -> None:
    subprocess.run([program(shell), "-n", COMPLETIONS / FILES[shell]], check=True)


@pytest.mark.parametrize("shell", SHELLS)
def test_show_and_install(home: Path, vlmkit, environment: dict[str, str], shell: str) -> None:
    text = (COMPLETIONS / FILES[shell]).read_bytes()
    assert vlmkit("--show-completion", shell).stdout == text
    environment["SHELL"] = f"/usr/bin/{shell}"
    first, second = (vlmkit("--install-completion").stdout.decode() for _ in range(2))
    assert first == second == vlmkit("--install-completion", shell).stdout.decode()
    place = {
        "bash": "home/data/bash-completion/completions/vlmkit",
        "zsh": "home/data/zsh/site-functions/_vlmkit",
        "fish": "home/config/fish/completions/vlmkit.fish",
    }[shell]
    assert (home / place).read_bytes() == text and str(home / place) in first
    assert not [path for path in (home / "home").iterdir() if path.name.startswith(".")]


def test_install_names_the_shells(home: Path, vlmkit, environment: dict[str, str]) -> None:
    environment["SHELL"] = "/bin/dash"
    told = "vlmkit: $SHELL is dash, which has no completions: name one: --install-completion bash|zsh|fish\n"
    assert vlmkit("--install-completion", code=2).stderr.decode() == told
    assert vlmkit("--show-completion", "dash", code=2).stderr.count(b"\n") == 1


def test_zsh_that_knows_the_folder_needs_no_lines(home: Path, vlmkit) -> None:
    assert "fpath=(" in vlmkit("--install-completion", "zsh").stdout.decode()
    (home / "home/.zshrc").write_text(f"fpath=({home}/home/data/zsh/site-functions $fpath)\n")
    assert "fpath=(" not in vlmkit("--install-completion", "zsh").stdout.decode()


@pytest.mark.slow
def test_bash_completes_while_one_types(home: Path, indexes: None, environment: dict[str, str]) -> None:
    own: dict = environment | {"PS1": "$ "}
    terminal = pexpect.spawn(program("bash"), ["--norc", "-i"], cwd=str(home), env=own, timeout=60)
    terminal.setwinsize(24, 200)
    terminal.sendline(f"bind 'set enable-bracketed-paste off'; source {COMPLETIONS}/vlmkit.bash; echo rea''dy")
    terminal.expect("ready")
    for typed, completed in (
        ("vlmkit eval vqa --me\tex\t", "vlmkit eval vqa --metric exact"),
        ("vlmkit embed --format=sa\t", "vlmkit embed --format=safetensors"),
        ("vlmkit eval vqa answers.jsonl --by ki\t", "vlmkit eval vqa answers.jsonl --by kind"),
        ("vlmkit embed ans\t", "vlmkit embed answers.jsonl"),
        ("vlmkit search -i home --where te\tdo\t", "vlmkit search -i home --where text=dog"),
        ("vlmkit search -i home --where=text=do\t", "vlmkit search -i home --where=text=dog"),
        ("vlmkit search -i home --where text!=d\t", "vlmkit search -i home --where text!=dog"),
    ):
        terminal.send(f"{typed}\x01echo \n")  # to the beginning of the line: what stands there is printed
        terminal.expect_exact(f"\n{completed}")
    terminal.close(force=True)
