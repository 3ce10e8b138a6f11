"""A run that is killed, or fills the disk, leaves nothing half and goes on to the same end; one that fails says why."""

import hashlib
import json
import random
import resource
import shutil
from pathlib import Path

import pytest
from helpers import records
from vlm_data import write_data
from warm import Start

pytestmark = pytest.mark.slow

DATA = {"align": "captions", "instruct": "mixed", "prefer": "preferences"}
STAGES = [("align", []), ("instruct", []), ("instruct", ["--lora", "4"]), ("prefer", []), ("prefer", ["--lora", "4"])]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("data"))
    (folder / "noisy.toml").write_text("dropout = 0.1\naugmentations = 4\nprojector-lr = 0.01\n")
    return folder


@pytest.fixture(scope="module")
def aligned(data: Path, start: Start) -> Path:
    """What the later stages start from."""
    start(data, *command(data, "align", [])).done()
    return (data / "out").rename(data / "aligned")


def command(data: Path, stage: str, flags: list[str]) -> list[str]:
    line = ["train", stage, data / f"{DATA[stage]}.jsonl", "-o", "out", "--preset", "debug"]
    line += ["--config", data / "noisy.toml", "--batch-size", "4", "--save-steps", "3", "--steps", "12", "-q"]
    return [str(word) for word in [*line, *flags, *([] if stage == "align" else ["--from", data / "aligned"])]]


def made(folder: Path) -> dict[str, str]:
    """All files of a finished folder but its checkpoints, as hashes."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def losses(stdout: bytes) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in records(stdout) if "loss" in entry}


@pytest.mark.parametrize(
    ("stage", "flags"), STAGES, ids=lambda value: value if isinstance(value, str) else "".join(value)
)
def test_killed_and_resumed_it_ends_in_the_same_bytes(
    stage: str, flags: list[str], data: Path, aligned: Path, start: Start, tmp_path: Path
) -> None:
    line = command(data, stage, flags)
    whole = start(tmp_path / "whole", *line)
    at = random.Random(f"{stage}{flags}").sample(range(1, 11), 2)
    kept = []
    for number, step in enumerate(sorted(at)):
        running = start(tmp_path / "killed", *line, *(["--resume"] if number else []))
        running.wait_until(lambda r=running, n=step: any(loss_step >= n for loss_step in losses(whole_lines(r.stdout))))
        running.kill()
        out = tmp_path / "killed/out"
        assert not (out / "model.safetensors").exists() and not (out / "config.json").exists()
        kept.append(losses(whole_lines(running.stdout)))
    resumed = start(tmp_path / "killed", *line, "--resume").done()
    straight = losses(whole.done().stdout)
    assert made(tmp_path / "killed/out") == made(tmp_path / "whole/out")
    assert {"model.safetensors", "config.json", "train.toml", "README.md"} < made(tmp_path / "whole/out").keys()
    for log in (*kept, losses(resumed.stdout)):
        assert log.items() <= straight.items()
    assert max(straight) == 12 and min(losses(resumed.stdout)) > min(at) - 3


def whole_lines(path: Path) -> bytes:
    return path.read_bytes().rpartition(b"\n")[0] + b"\n" if b"\n" in path.read_bytes() else b""


def test_killed_while_it_finishes(data: Path, start: Start, tmp_path: Path) -> None:
    """The end is put together beside and moved in, weights last; here it got half way."""
    line = command(data, "align", [])
    start(tmp_path, *line).done()
    expected = made(tmp_path / "out")
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out/.finish-abc").mkdir()
    done = start(tmp_path, *line, "--resume").done()
    assert done.stdout == b"" and made(tmp_path / "out") == expected
    assert sorted(path.name for path in (tmp_path / "out").glob(".*")) == []
    assert start(tmp_path, *line[:-1], "--resume", *([] if line[-1] == "-q" else line[-1:])).done().stdout == b""


def test_full_disk_keeps_the_last_checkpoint(data: Path, start: Start, tmp_path: Path) -> None:
    line = command(data, "align", [])
    running = start(tmp_path / "full", *line)
    running.wait_until((tmp_path / "full/out/checkpoints/checkpoint-3").is_dir)
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (60_000, 60_000))  # a checkpoint takes more
    done = running.done(2)
    (said,) = done.stderr.decode().splitlines()
    assert said.startswith("vlmkit: the checkpoint of step ") and said.endswith(": free some space, then use --resume")
    names = sorted(path.name for path in (tmp_path / "full/out/checkpoints").iterdir())
    kept = [name for name in names if name.startswith("checkpoint-")]
    assert kept and f"{kept[-1]} is complete" in said and names == [*kept, "data.json", "train.toml"]
    start(tmp_path / "full", *line, "--resume").done()
    start(tmp_path / "whole", *line).done()
    assert made(tmp_path / "full/out") == made(tmp_path / "whole/out")


def test_other_data_are_refused(data: Path, start: Start, tmp_path: Path) -> None:
    rows = (data / "captions.jsonl").read_bytes().splitlines(keepends=True)
    own = data / "own.jsonl"
    own.write_bytes(b"".join(rows))
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages[0].content }}")
    line = [own if word == str(data / "captions.jsonl") else word for word in command(data, "align", [])]
    line += ["--template", template]
    running = start(tmp_path, *line)
    running.wait_until((tmp_path / "out/checkpoints/checkpoint-3").is_dir)
    running.kill()
    for changed in (rows[:-1], [rows[0].replace(b"red", b"rose"), *rows[1:]], rows[::-1]):
        own.write_bytes(b"".join(changed))
        done = start(tmp_path, *line, "--resume").done(2)
        assert done.stderr.decode().startswith(f"vlmkit: {own} changed since the run in out began: ")
    own.write_bytes(b"".join(rows))
    template.write_text("{{ messages[-1].content }}")
    done = start(tmp_path, *line, "--resume").done(2)
    assert done.stderr.decode().startswith(f"vlmkit: {template} changed since the run in out began: restore it")
    template.write_text("{{ messages[0].content }}")
    assert start(tmp_path, *line, "--resume").done().stderr == b""


def test_a_loss_that_is_no_number_stops_it(data: Path, start: Start, tmp_path: Path) -> None:
    done = start(tmp_path, *command(data, "align", []), "--projector-lr", "1e30").done(2)
    (said,) = done.stderr.decode().splitlines()
    assert said.startswith("vlmkit: the loss is nan at step ") and said.endswith(": try a lower rate, in a new folder")
    step = int(said.split("step ")[1].split(",")[0])
    assert step == len(losses(done.stdout)) + 1
    named = said.split("samples ")[1].split(":")[0].split(", ")
    assert len(named) == 4 and set(named) <= {f"s{i}" for i in range(24)}
    assert not (tmp_path / "out/model.safetensors").exists()


def test_early_stop_and_best_checkpoint(data: Path, start: Start, tmp_path: Path) -> None:
    """What it learns does not help with the validation data, whose captions are of other letters."""
    image = str(data / "pictures/0.png")
    (data / "other.jsonl").write_text(json.dumps({"id": "other", "image": image, "captions": ["ZQXJ 0987 ZQXJ"]}))
    line = [*command(data, "align", []), "--val", str(data / "other.jsonl"), "--early-stop", "2"]
    line += ["--save-steps", "1", "--keep", "1"]
    log = records(start(tmp_path, *line).done().stdout)
    validated = {entry["step"]: entry["val_loss"] for entry in log if "val_loss" in entry}
    best, last = min(validated, key=validated.__getitem__), max(validated)
    assert last == best + 2 < 12, "two validations without improvement"
    kept = {path.name for path in (tmp_path / "out/checkpoints").glob("checkpoint-*")}
    assert kept == {f"checkpoint-{best}", f"checkpoint-{last}"}
    from safetensors.torch import load_file

    model = load_file(tmp_path / "out/model.safetensors")
    weights = load_file(tmp_path / f"out/checkpoints/checkpoint-{best}/model.safetensors")
    assert weights.keys() < model.keys() and all((model[name] == value).all() for name, value in weights.items())
    assert f"least validation loss {validated[best]:.4f}" in (tmp_path / "out/README.md").read_text()
    expected = made(tmp_path / "out")
    (tmp_path / "out/model.safetensors").unlink()
    again = start(tmp_path, *line, "--resume").done()
    assert again.stdout == b"" and made(tmp_path / "out") == expected, "a run that had stopped goes no further"


def test_checkpoints_are_kept_by_number(data: Path, start: Start, tmp_path: Path) -> None:
    start(tmp_path, *command(data, "align", []), "--save-steps", "2", "--keep", "3").done()
    kept = {path.name for path in (tmp_path / "out/checkpoints").glob("checkpoint-*")}
    assert kept == {"checkpoint-8", "checkpoint-10", "checkpoint-12"}


def test_a_folder_that_holds_another_run_is_refused(data: Path, start: Start, tmp_path: Path) -> None:
    line = command(data, "align", [])

    def refused(*flags: str) -> str:
        done = start(tmp_path, *line, *flags).done(2)
        (said,) = done.stderr.decode().splitlines()
        assert done.stdout == b""
        return said

    (tmp_path / "out").mkdir(parents=True)
    (tmp_path / "out/notes.txt").write_text("mine")
    assert refused() == "vlmkit: out is not empty: name a new folder with -o"
    shutil.rmtree(tmp_path / "out")
    running = start(tmp_path, *line)
    running.wait_until((tmp_path / "out/checkpoints/checkpoint-3").is_dir)
    running.kill()
    assert "out holds an unfinished run: use --resume" in refused()
    assert "out holds a run with other settings (seed): compare out/checkpoints/train.toml" in refused(
        "--resume", "--seed", "1"
    )
    start(tmp_path, *line, "--resume").done()
    before = made(tmp_path / "out")
    assert "out holds a finished run: use --resume" in refused()
    assert "out holds a run with other settings (seed): compare out/train.toml" in refused("--resume", "--seed", "1")
    assert made(tmp_path / "out") == before


def test_the_same_weights_by_parts(data: Path, aligned: Path, start: Start, tmp_path: Path) -> None:
    """A batch of 8 at once is a batch of 8 in four parts, though the parts differ in what they learn."""
    import torch
    from safetensors.torch import load_file

    for stage in DATA:
        runs = {}
        for parts in (1, 4):
            flags = [*command(data, stage, []), "--batch-size", "8", "--accumulate", str(parts), "--steps", "4"]
            flags[flags.index("--config") + 1] = str(data / "quiet.toml")
            settings = "" if stage == "prefer" else 'pack-length = 96\nloss-weighting = "root"\n'
            (data / "quiet.toml").write_text(settings)
            runs[parts] = start(tmp_path / f"{stage}{parts}", *flags)
        logs = {parts: losses(run.done().stdout) for parts, run in runs.items()}
        assert logs[1] == pytest.approx(logs[4], rel=1e-5)
        one, four = (load_file(tmp_path / f"{stage}{parts}/out/model.safetensors") for parts in (1, 4))
        assert all(torch.allclose(one[name], four[name], atol=1e-4) for name in one)
