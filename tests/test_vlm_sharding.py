"""Shards of a model in several processes: losses and weights as with one, on a CPU."""

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import records
from safetensors.torch import load_file
from vlm_data import line, together, write_data, write_towers
from warm import Start

from vlmkit.train.sharding import _without_reduction

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Path:
    folder = write_towers(write_data(tmp_path_factory.mktemp("data")))
    start(folder, *line(folder, "align", "captions", "aligned")).done()
    return folder


def figures(log: list[dict]) -> list[list[float]]:
    return [[entry[name] for name in ("step", "loss", "lr", "grad_norm")] for entry in log if "loss" in entry]


def weights(place: Path) -> dict[str, torch.Tensor]:
    return load_file(place / "model.safetensors")


def words(data: Path, out: str, *flags: object) -> list[str]:
    own = "--batch-size", "8", "--steps", "4", "--save-steps", "2", "--device", "cpu", *flags
    return line(data, "instruct", "mixed", out, "--from", data / "aligned", *own, towers=False)


@pytest.mark.parametrize(
    ("count", "flags"),
    [
        (2, ["--train-vision", "--accumulate", "2", "--max-tokens-per-batch", "60"]),  # parts, some without a picture
        (4, []),
        (2, ["--lora", "2", "--checkpointing"]),
        (1, ["--train-vision"]),
    ],
)
def test_shards_train_as_one_process(data: Path, start: Start, tmp_path: Path, count: int, flags: list[str]) -> None:
    one = records(start(tmp_path, *words(data, "one", "--val", "0.2", *flags)).done().stdout)
    many = together(start, tmp_path, words(data, "many", "--val", "0.2", "--fsdp", *flags), count)
    assert [entry.keys() for entry in many] == [entry.keys() for entry in one]
    assert figures(many) == [pytest.approx(row, rel=1e-4) for row in figures(one)]
    validated = [[entry["val_loss"] for entry in log if "val_loss" in entry] for log in (one, many)]
    assert len(validated[0]) == 2 and validated[1] == pytest.approx(validated[0], rel=1e-4)
    a, b = weights(tmp_path / "one"), weights(tmp_path / "many")
    assert a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


def test_shards_are_kept_and_resumed(data: Path, start: Start, tmp_path: Path) -> None:
    """Each process writes its part, and the run ends in the same bytes from the checkpoint between."""
    log = together(start, tmp_path, words(data, "whole", "--fsdp", "--keep", "9"), 2)
    kept = tmp_path / "whole/checkpoints"
    parts = sorted(path.stat().st_size for path in (kept / "checkpoint-2/shards").glob("*.distcp"))
    assert len(parts) == 2 and parts[0] > 0.7 * parts[1]
    assert (kept / "checkpoint-2/model.safetensors").stat().st_size < 100
    shutil.copytree(kept, tmp_path / "again/checkpoints")
    shutil.rmtree(tmp_path / "again/checkpoints/checkpoint-4")
    settings = tmp_path / "again/checkpoints/train.toml"
    settings.write_text(settings.read_text().replace('"whole"', '"again"'))
    rest = together(start, tmp_path, words(data, "again", "--fsdp", "--keep", "9", "--resume"), 2)
    assert figures(rest) == figures(log)[2:]
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again"))
    assert a == b


def test_bf16_weights_are_updated_in_fp32(data: Path, start: Start, tmp_path: Path) -> None:
    """In one process, in two with a copy each, and in two with shards it is the same."""
    exact = records(start(tmp_path, *words(data, "exact")).done().stdout)
    rough = "--precision", "bf16"
    alone = records(start(tmp_path, *words(data, "alone", *rough)).done().stdout)
    copies = together(start, tmp_path, words(data, "copies", *rough), 2)
    shards = together(start, tmp_path, words(data, "shards", *rough, "--fsdp"), 2)
    for log in (alone, copies, shards):
        assert [row[1] for row in figures(log)] == pytest.approx([row[1] for row in figures(exact)], rel=0.02)
    assert figures(copies) == [pytest.approx(row, rel=2e-3) for row in figures(alone)]
    assert figures(shards) == [pytest.approx(row, rel=1e-6) for row in figures(copies)]
    for name in ("alone", "copies", "shards"):
        moved = [value for key, value in weights(tmp_path / name).items() if "layers.0.self_attn.q_proj" in key]
        assert any(not torch.equal(value, value.bfloat16().float()) for value in moved), "the masters are updated"


def test_masters_are_resumed(data: Path, start: Start, tmp_path: Path) -> None:
    words_of = partial(words, data, "out", "--precision", "bf16", "--keep", "9")
    start(tmp_path, *words_of()).done()
    end = (tmp_path / "out/model.safetensors").read_bytes()
    for path in (tmp_path / "out").iterdir():
        if path.name != "checkpoints":
            path.unlink()
    shutil.rmtree(tmp_path / "out/checkpoints/checkpoint-4")
    start(tmp_path, *words_of("--resume")).done()
    assert (tmp_path / "out/model.safetensors").read_bytes() == end


def test_a_part_within_parts_does_not_reduce() -> None:
    """`Trainer` leaves all micro-batches but the last unreduced, the parts of a micro-batch do so within."""
    asked: list[bool] = []
    model: Any = SimpleNamespace(reduces=True, set_requires_gradient_sync=asked.append)
    with _without_reduction(model):
        with _without_reduction(model):
            pass
        assert asked[-1] is False
    assert asked[-1] is True


def test_shards_need_torchrun(data: Path, start: Start, tmp_path: Path) -> None:
    done = start(tmp_path, *words(data, "out", "--fsdp")).done(2)
    assert done.stderr == b"vlmkit: --fsdp requires torchrun: use torchrun -m vlmkit, or leave it out\n"
    done = start(tmp_path, *words(data, "out", "--offload")).done(2)
    assert done.stderr.startswith(b"vlmkit: --offload requires --fsdp")
