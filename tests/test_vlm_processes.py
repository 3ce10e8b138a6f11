"""Several processes, a terminal, and other places to log to."""

import fcntl
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch
from conftest import SCRIPT
from helpers import records
from safetensors.torch import load_file
from vlm_data import line, runs_together, write_data, write_towers
from warm import Start

from vlmkit.errors import VlmkitError
from vlmkit.train.checks import check
from vlmkit.train.config import PreferConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Path:
    folder = write_towers(write_data(tmp_path_factory.mktemp("data")))
    start(folder, *line(folder, "align", "captions", "aligned")).done()
    return folder


def figures(log: list[dict]) -> list[list[float]]:
    return [[entry["step"], entry["loss"], entry["lr"]] for entry in log if "loss" in entry]


def same(one: Path, two: Path) -> bool:
    a, b = (load_file(folder / "out/model.safetensors") for folder in (one, two))
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


def test_torchrun_with_two_processes_is_one_process(data: Path, start: Start, tmp_path: Path) -> None:
    """The same losses and weights, and the first process alone speaks."""
    words = [word for word in line(data, "align", "captions", "out", "--val", "0.2", "--device", "cpu") if word != "-q"]
    one = start(tmp_path / "one", *words)
    (tmp_path / "two").mkdir()
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    two = subprocess.run(run, capture_output=True, cwd=tmp_path / "two", env=environment)
    assert two.returncode == 0, two.stderr.decode()
    alone, both = records(one.done().stdout), records(two.stdout)
    assert [entry.keys() for entry in both] == [entry.keys() for entry in alone]
    assert figures(both) == [pytest.approx(row, rel=1e-5) for row in figures(alone)]
    assert [e["val_loss"] for e in both if "val_loss" in e] == pytest.approx(
        [e["val_loss"] for e in alone if "val_loss" in e]
    )
    assert same(tmp_path / "one", tmp_path / "two")
    said = two.stderr.decode()
    assert said.count("vlmkit: ") == 2 and "24 rows read" in said and "of these samples held out" in said


@pytest.mark.parametrize(
    ("stage", "name", "flags"),
    [("instruct", "mixed", ["--train-vision"]), ("instruct", "mixed", ["--lora", "2"]), ("prefer", "preferences", [])],
)
def test_two_processes_in_later_stages(
    data: Path, start: Start, tmp_path: Path, stage: str, name: str, flags: list[str]
) -> None:
    """Each gets one sample a step, once one without a picture."""
    words = line(data, stage, name, "out", "--from", data / "aligned", "--batch-size", "2", *flags, towers=False)
    words[words.index("--steps") + 1] = "13"
    one = start(tmp_path / "one", *words)
    first, second = runs_together(start, [tmp_path / "two"] * 2, words, 2)
    alone, both = records(one.done().stdout), records(first.done().stdout)
    silent = second.done()
    assert silent.stdout + silent.stderr == b""
    assert figures(both) == [pytest.approx(row, rel=1e-4) for row in figures(alone)]
    assert same(tmp_path / "one", tmp_path / "two")


def test_an_error_that_all_have_is_told_once(data: Path, start: Start, tmp_path: Path) -> None:
    words = line(data, "align", "captions", "out", "--lora", "2")
    runs = [start(tmp_path, *words, environment={"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in range(2)]
    first, second = (run.done(2) for run in runs)
    assert first.stderr.startswith(b"vlmkit: --lora is not for align") and second.stderr == b""


def test_nodes_without_a_common_disk_are_told(data: Path, start: Start, tmp_path: Path) -> None:
    """Two processes in different folders, the output relative: the run ends, but cannot be resumed, or be in shards."""
    words = line(data, "align", "captions", "out", "--device", "cpu")
    words = [word for word in words if word != "-q"]
    places = [tmp_path / "here", tmp_path / "there"]
    told = f"vlmkit: {places[0]} is another folder on {socket.gethostname()} than for the first process"
    for code, more in ((0, []), (2, ["--resume"]), (2, ["--fsdp"])):
        first, second = runs_together(start, places, [*words, *more], 2)
        error = first.done(code).stderr.decode()
        assert told in error and ("but --resume will refuse" in error) == (code == 0)
        assert second.done(code).stderr == b""
        if code == 0:
            assert (places[0] / "out/model.safetensors").exists() and not (places[1] / "out/model.safetensors").exists()


def test_a_bar_and_a_summary_on_a_terminal(data: Path, environment: dict[str, str], tmp_path: Path) -> None:
    words = [word for word in line(data, "align", "captions", "out") if word != "-q"]
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    process = subprocess.Popen([SCRIPT, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            more = os.read(master, 65536)
        except OSError:  # the terminal's other side is closed
            break
        if not more:
            break
        shown += more
    assert process.stdout is not None
    with process.stdout:
        log = records(process.stdout.read())
    assert process.wait() == 0 and [entry["step"] for entry in log] == [1, 2, 3]
    text = shown.decode()
    assert re.search(r"\d%\|.*\b[0-3]/3\b", text) and "captions.jsonl" in text
    assert re.search(r"vlmkit: 3 steps in \d+\.\d s, \S+ a second", text)
    os.close(master)


def test_tensorboard(data: Path, start: Start, tmp_path: Path) -> None:
    start(tmp_path, *line(data, "align", "captions", "out", "--report-to", "tensorboard")).done()
    (events,) = (tmp_path / "out/runs").rglob("events.out.tfevents.*")
    assert all(name in events.read_bytes() for name in (b"loss", b"lr", b"tokens_per_s"))


@pytest.mark.parametrize(("package", "report"), [("wandb", "wandb"), ("tensorboard", "tensorboard"), ("trl", None)])
def test_a_package_that_is_missing(package: str, report: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as Python itself marks what cannot be imported
    with pytest.raises(VlmkitError, match=f"needs the package {package}: pip install "):
        check(PreferConfig(data=["data.jsonl"], out=Path("out"), report_to=report))
