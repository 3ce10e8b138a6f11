"""What every command owes a shell: exit codes, streams, signals, a quick start."""

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from generate import commands
from helpers import jsonl, picture, records

NAMES = [command.name for command in commands()]


@pytest.mark.parametrize("name", NAMES)
def test_help_of_every_command(vlmkit, name: str) -> None:
    long, short = (vlmkit(name, flag).stdout.decode() for flag in ("--help", "-h"))
    assert long == short and "Example:" in long
    for flag in ("-q", "-v", "--debug", "-V"):
        assert flag in long


def test_version(vlmkit) -> None:
    from vlmkit import __version__

    for arguments in (["-V"], ["--version"], ["embed", "-V"]):
        assert vlmkit(*arguments).stdout.decode() == f"vlmkit {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["embed", "--nothing"], ["embed", "--batch-size", "x"], ["-x"]])
def test_wrong_usage(vlmkit, arguments: list[str]) -> None:
    done = vlmkit(*arguments, code=2)
    assert done.stdout == b"" and done.stderr
    if arguments:
        assert done.stderr.startswith(b"vlmkit: ") and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("command", [["embed"], ["index"], ["classify", "--labels", "a,b"]])
def test_no_input_on_a_terminal(command: list[str], tmp_path: Path, environment) -> None:
    master, slave = pty.openpty()
    done = subprocess.run(
        ["vlmkit", *command], stdin=slave, capture_output=True, cwd=tmp_path, env=environment, timeout=60
    )
    os.close(master)
    os.close(slave)
    assert done.returncode == 2 and b"no input" in done.stderr


@pytest.mark.parametrize("command", [["embed"], ["index"], ["classify", "--labels", "a,b"]])
def test_missing_path(vlmkit, command: list[str]) -> None:
    done = vlmkit(*command, "nowhere/a.png", code=2)
    assert done.stderr == b"vlmkit: nowhere/a.png: no such file or folder: check the name\n"


def test_error_with_a_line_break_in_a_name_is_one_line(vlmkit, tmp_path: Path) -> None:
    (tmp_path / "a\nb\x1b[31m.png").write_bytes(b"bad")
    done = vlmkit("embed", "a\nb\x1b[31m.png", code=2)
    assert done.stderr.count(b"\n") == 1 and b"\x1b" not in done.stderr


def test_traceback_only_with_debug(tmp_path: Path, environment) -> None:
    done = subprocess.run(["vlmkit", "embed", "no", "--debug"], capture_output=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2 and b"Traceback" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["embed", "--text"], ["embed", "--text", "--format", "safetensors"]])
def test_full_device(tmp_path: Path, environment, arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            ["vlmkit", *arguments], input=b"a\n", stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, env=environment
        )
    assert done.returncode == 2
    assert done.stderr.startswith(b"vlmkit: ") and done.stderr.count(b"\n") == 1 and b"No space left" in done.stderr


def test_closed_pipe_with_more_data_than_a_pipe_holds(shell, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("".join(f"text {i}\n" for i in range(2000)))
    done = shell("vlmkit embed --text texts | head -n 1 | wc -l; echo ${PIPESTATUS[@]}")
    assert done.stdout.split() == [b"1", b"0", b"0", b"0"] and done.stderr == b""


def test_closed_standard_output(shell) -> None:
    done = shell("echo a | vlmkit embed --text >&-")
    assert done.returncode == 2 and b"standard output is closed" in done.stderr


def test_output_to_a_device_leaves_the_device(vlmkit, tmp_path: Path) -> None:
    vlmkit("embed", "--text", "-o", "/dev/null", stdin=b"a\n")
    assert not Path("/dev/null").is_file()


def test_output_through_a_link_and_with_its_rights(vlmkit, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    vlmkit("embed", "--text", "-o", "link", stdin=b"a\n")
    assert (tmp_path / "link").is_symlink() and len(records((tmp_path / "real").read_bytes())) == 1
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("form", ["jsonl", "safetensors"])
def test_a_signal_leaves_no_file(tmp_path: Path, environment, number: int, code: int, form: str) -> None:
    """Stopped in mid-run: more pictures were to come, some were written to the temporary file already."""
    paths = [picture(tmp_path / f"in/{i}.png") for i in range(200)]
    command = ["vlmkit", "embed", "-o", "out", "--errors", "bad", "--format", form]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # it may be ignored around the tests
    )
    assert process.stdin
    process.stdin.write(b"".join(b"%s\n" % bytes(path) for path in paths))
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size > 600 for p in tmp_path.glob(".out.*.part")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None and list(tmp_path.glob(".out.*.part"))
    process.send_signal(number)
    assert process.wait(timeout=30) == code
    assert b"Traceback" not in process.communicate()[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "in"]


def test_sigterm_leaves_whole_lines_on_a_pipe(tmp_path: Path, environment) -> None:
    (tmp_path / "texts").write_text("".join(f"text {i}\n" for i in range(5000)))
    command = ["vlmkit", "embed", "--text", "texts"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path, env=environment) as process:
        assert process.stdout
        first = process.stdout.readline()
        time.sleep(1)  # the pipe is full now: the command waits inside a write
        process.terminate()
        rest = process.stdout.read()
        assert process.wait(timeout=30) == 143
    assert 1 < len(records(first + rest)) < 5000


@pytest.mark.slow
def test_progress_only_on_a_terminal(tmp_path: Path, environment) -> None:
    (tmp_path / "texts").write_text("a\nb\n")
    for quiet in ([], ["-q"]):
        master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 80))
        command = ["vlmkit", "embed", "--text", "texts", "-o", "out", *quiet]
        subprocess.run(command, stderr=slave, cwd=tmp_path, env=environment, check=True)
        os.write(slave, b"end")
        reported = os.read(master, 1 << 16)
        assert bool(re.search(rb"vlmkit: 2 read, 2 written in [0-9.]+ s, [0-9.]+ a second", reported)) == (not quiet)
        os.close(master)
        os.close(slave)
    assert subprocess.run(command[:-1], capture_output=True, cwd=tmp_path, env=environment).stderr == b""


def imports(arguments: list[str], tmp_path: Path, environment, stdin: bytes = b"") -> set[str]:
    """The top-level modules that are loaded when a command line ends."""
    code = (
        "import sys, atexit; from vlmkit.__main__ import run; sys.argv[1:] = " + repr(arguments) + "\n"
        "atexit.register(lambda: print('MODULES', *sys.modules, file=sys.stderr)); run()"
    )
    done = subprocess.run([sys.executable, "-c", code], input=stdin, capture_output=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    return {name.partition(".")[0] for name in done.stderr.decode().rpartition("MODULES")[2].split()}


def test_help_imports_nothing_heavy(tmp_path: Path, environment) -> None:
    heavy = {
        "torch",
        "transformers",
        "open_clip",
        "faiss",
        "onnxruntime",
        "numpy",
        "PIL",
        "rich",
        "tqdm",
        "tokenizers",
        "pydantic",
    }
    assert not imports(["--help"], tmp_path, environment) & heavy
    assert not imports(["embed", "--help"], tmp_path, environment) & heavy


@pytest.mark.slow
def test_search_and_embed_never_import_torch(vlmkit, photos: Path, tmp_path: Path, environment) -> None:
    heavy = {"torch", "transformers", "open_clip", "timm", "torchvision", "sklearn", "scipy"}
    vlmkit("index", stdin=vlmkit("embed", photos / "coffee.png").stdout)
    found = imports(["search", "a cup", "-i", "default", "-k", "1", "--batch-size", "auto"], tmp_path, environment)
    assert "tokenizers" in found
    assert not found & (heavy | {"PIL", "faiss", "pydantic", "onnxruntime"})
    assert not imports(["embed", "--text"], tmp_path, environment, b"a\n") & heavy
    assert not imports(["embed", str(photos / "coffee.png")], tmp_path, environment) & heavy


@pytest.mark.slow
def test_cold_search_needs_little_memory(vlmkit, photos: Path, tmp_path: Path, environment) -> None:
    vlmkit("index", stdin=vlmkit("embed", photos).stdout)
    code = (
        "import resource, subprocess; subprocess.run(['vlmkit', 'search', 'a cup', '-l', '-k', '1'], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path, env=environment, check=True)
    assert int(done.stdout.split()[-1]) < 400 * 1024  # kilobytes


def test_environment_names_the_defaults(vlmkit, tmp_path: Path, environment) -> None:
    picture(tmp_path / "a.png")
    environment["VLMKIT_INDEX"] = "./mine"
    vlmkit("index", stdin=vlmkit("embed", "a.png").stdout)
    assert (tmp_path / "mine/index.sqlite").exists()
    environment["VLMKIT_EMBED_MODEL"] = "nothing"
    assert b"unknown model nothing" in vlmkit("embed", "a.png", code=2).stderr


def test_mini_runs_on_the_cpu_and_says_so(vlmkit) -> None:
    assert b"device cpu" in vlmkit("embed", "--text", "-v", stdin=b"a\n").stderr
    assert b"--device" in vlmkit("embed", "--text", "--device", "cuda", stdin=b"a\n", code=2).stderr


def test_unwritable_cache_does_not_matter(vlmkit, tmp_path: Path, environment) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/XDG_CACHE_HOME").write_text("a file stands in the way")
    assert len(records(vlmkit("embed", stdin=jsonl({"text": "a"})).stdout)) == 1


def catches_signals(pid: int) -> bool:
    """Whether the process has set its handler of SIGTERM, so that it runs our code."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(mask >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("delay", [0.05, 0.1, 0.15, 0.2, 0.3])
def test_a_signal_while_libraries_load_never_crashes(tmp_path: Path, environment, photos: Path, delay: float) -> None:
    command = ["vlmkit", "embed", photos, "-o", "out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path, env=environment)
    while not catches_signals(process.pid):
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors.decode()
    assert not list(tmp_path.glob(".out*")) and not (tmp_path / "out").exists()


def test_nothing_that_is_read_is_overwritten(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "in.jsonl").write_bytes(jsonl({"image": "a.png"}))
    before = {path: path.read_bytes() for path in (tmp_path / "a.png", tmp_path / "in.jsonl")}
    for wrong in (
        ["a.png", "-o", "a.png"],
        ["in.jsonl", "--errors", "in.jsonl"],
        ["a.png", "-o", "x", "--errors", "x"],
    ):
        vlmkit("embed", *wrong, code=2)
    vlmkit("index", "in.jsonl", "--errors", "in.jsonl", code=2)
    assert {path: path.read_bytes() for path in before} == before


def test_closed_standard_error(shell, tmp_path: Path) -> None:
    done = shell("echo a | vlmkit embed --text 2>&-")
    assert done.returncode == 0 and len(records(done.stdout)) == 1


def test_binary_data_on_standard_input_is_one_error(vlmkit, tmp_path: Path) -> None:
    done = vlmkit("embed", stdin=picture(tmp_path / "a.png").read_bytes(), code=2)
    assert done.stderr.count(b"\n") == 1


def test_options_of_scripts_are_taken_by_every_command(vlmkit) -> None:
    common = ["--device", "cpu", "--batch-size", 3, "--workers", 1, "--seed", 5]
    vlmkit("index", "-i", "./new.index", *common, stdin=b"")
    vlmkit("config", "--path", *common)
    assert b"--device" not in vlmkit("index", "--help").stdout
