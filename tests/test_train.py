"""`vlmkit train contrastive` with a locked image tower, on pictures of coloured shapes and towers of random weights."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SHAPE_WORDS, jpeg, shapes, tar, tiny_towers
from safetensors.torch import load_file
from torch.optim import AdamW
from transformers import get_cosine_schedule_with_warmup

from vlmkit.errors import VlmkitError
from vlmkit.io.files import atomic_folder
from vlmkit.io.terminal import Failures
from vlmkit.train.config import LitConfig
from vlmkit.train.contrastive import gradcache
from vlmkit.train.contrastive.losses import Objective
from vlmkit.train.contrastive.model import retrieval
from vlmkit.train.contrastive.run import train
from vlmkit.train.contrastive.sampler import batches, open_sample, read_pictures, read_samples
from vlmkit.train.schedule import rate_share

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shapes.tar, image-tower and text-tower."""
    folder = tmp_path_factory.mktemp("training")
    shapes(folder)
    tiny_towers(folder, SHAPE_WORDS)
    return folder


def config(place: Path, out: Path, **changes: Any) -> LitConfig:
    some = {"epochs": 12, "text_epochs": 6, "batch_size": 16, "captions": 2, "augmentations": 2, "dim": 32, "lr": 5e-3}
    some |= {
        "text_lr": 2e-3,
        "dropout": 0.0,
        "feature_dropout": 0.0,
        "weight_decay": 0.01,
        "log_every": 5,
        "best": False,
    }
    return LitConfig(
        data=[str(place / "shapes.tar")],
        out=out,
        vision=str(place / "image-tower"),
        text=str(place / "text-tower"),
        val=str(place / "shapes.tar"),
        **({"best": False} | some | changes),
    )


@pytest.fixture(scope="module")
def run(place: Path) -> tuple[Path, list[dict[str, Any]]]:
    """(output folder, log) of one run."""
    log: list[dict[str, Any]] = []
    return train(config(place, place / "model"), log.append), log


def test_log_holds_first_and_last_step_and_every_epoch(run: tuple[Path, list[dict[str, Any]]]) -> None:
    _, log = run
    steps = [line["step"] for line in log if "loss" in line]
    assert steps == [1, *range(5, 48, 5), 48]
    fields = {"epoch", "step", "loss", "lr", "text_lr", "grad_norm", "logit_scale", "samples_per_s", "memory_gb"}
    assert all(fields == set(x) for x in log if "loss" in x)
    epochs = [line for line in log if "loss" not in line]
    assert [line["epoch"] for line in epochs] == list(range(13))
    assert epochs[0]["step"] == 0, "retrieval is measured before the first step"
    assert all(f"{way}_r{k}" in epochs[0] for way in ("text_to_image", "image_to_text") for k in (1, 5, 10))
    assert json.loads(json.dumps(log)) == log


def test_it_learns(run: tuple[Path, list[dict[str, Any]]]) -> None:
    _, log = run
    first, last = log[0], log[-1]
    assert last["text_to_image_r10"] > first["text_to_image_r10"] + 0.3
    assert last["image_to_text_r10"] > first["image_to_text_r10"] + 0.3
    assert last["gap"] > first["gap"] + 0.1


def test_the_same_seed_makes_the_same_bytes(place: Path, run: tuple[Path, list[dict[str, Any]]]) -> None:
    short = {"epochs": 2, "text_epochs": 1, "augmentations": 3}
    folders = [train(config(place, place / f"same{i}", **short), lambda _: None) for i in range(2)]
    one, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one == other
    different = train(config(place, place / "different", seed=1, **short), lambda _: None)
    assert (different / "model.safetensors").read_bytes() != one


def test_locked_parts_do_not_change(place: Path, run: tuple[Path, list[dict[str, Any]]]) -> None:
    weights = load_file(run[0] / "model.safetensors")
    for name, value in load_file(place / "image-tower/model.safetensors").items():
        if not name.startswith("classifier."):
            assert torch.equal(weights[f"visual.trunk.{name}"], value), name
    text = load_file(place / "text-tower/model.safetensors")
    same = {n: torch.equal(weights[f"text.transformer.{n}"], v) for n, v in text.items() if not n.startswith("pooler.")}
    assert all(same[n] for n in same if n.startswith(("embeddings.", "encoder.layer.0.")))
    assert not all(same[n] for n in same if n.startswith("encoder.layer.1."))


def test_open_clip_opens_the_folder_and_finds_the_same(place: Path, run: tuple[Path, list[dict[str, Any]]]) -> None:
    import open_clip

    folder, log = run
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    samples = read_samples([str(place / "shapes.tar")])
    with torch.inference_mode():
        pictures = torch.stack([preprocess(open_sample(sample, 160)) for sample in samples])
        images = model.encode_image(pictures, normalize=True)
        texts = model.encode_text(tokenizer([c for sample in samples for c in sample.captions]), normalize=True)
    found = retrieval(images, texts, torch.arange(64).repeat_interleave(2))
    assert found["gap"] == pytest.approx(log[-1]["gap"], abs=2e-3)
    assert found["text_to_image_r10"] == pytest.approx(log[-1]["text_to_image_r10"], abs=0.02)


def test_a_moved_folder_opens(place: Path, run: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    from vlmkit.train.contrastive.two_towers import open_folder

    moved = tmp_path / "moved"
    shutil.copytree(run[0], moved)
    text = json.loads((moved / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert text["hf_model_name"] == str(run[0])
    model, _, tokenizer = open_folder(moved)
    assert model.encode_text(tokenizer(["a red circle"])).shape == (1, 32)


def test_a_run_without_a_checkpoint_leaves_nothing(place: Path, tmp_path: Path) -> None:
    def stop(line: dict[str, Any]) -> None:
        if "loss" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(place, tmp_path / "model"), stop)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(VlmkitError, match="not empty"):
        train(config(place, tmp_path / "full"), lambda _: None)
    with pytest.raises(VlmkitError, match="does not exist"):
        train(config(place, tmp_path / "missing/model"), lambda _: None)


def test_an_empty_output_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as made:
        (made / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/file").exists()


@pytest.mark.parametrize(("member", "message"), [("none", "no captions"), ("damaged", "001.png")])
def test_unusable_data_are_named_and_left_out(
    place: Path, tmp_path: Path, member: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {} if member == "none" else {"captions": ["a red circle"]}
    data = b"no picture" if member == "damaged" else jpeg()
    bad = tar(tmp_path / "bad.tar", {"001.png": data, "001.json": json.dumps(fields).encode()})
    failures = Failures()
    pictures = read_pictures([str(place / "shapes.tar"), str(bad)], failures)
    assert (len(pictures.rows), failures.count) == (64, 1)
    assert message in capsys.readouterr().err
    assert [row.dropped for row in pictures.table] == [0, 1]
    with pytest.raises(VlmkitError, match="cannot be used"):
        read_samples([str(place / "shapes.tar"), str(bad)])


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_an_unknown_tower_is_an_error(place: Path, tmp_path: Path, tower: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(VlmkitError, match="empty"):
        train(replace(config(place, tmp_path / "out"), **{tower: str(tmp_path / "empty")}), print)


def test_steps_rule_over_epochs(place: Path, tmp_path: Path) -> None:
    log: list[dict[str, Any]] = []
    train(replace(config(place, tmp_path / "out"), steps=6, epochs=1, val=None), log.append)
    assert [line["step"] for line in log] == [1, 5, 6]
    assert log[-1]["epoch"] == 2


def test_validation_by_fraction(place: Path) -> None:
    def ids(limit: int | None = None) -> tuple[list[str], list[str]]:
        parts = read_pictures([str(place / "shapes.tar")], Failures(), limit=limit).split(0.25)
        return tuple([Path(sample.id).stem for sample in part.rows] for part in parts)

    training, validation = ids()
    assert sorted(training + validation) == [f"{i:03}" for i in range(64)]
    assert 6 <= len(validation) <= 26
    assert ids(40)[1] == [id for id in validation if int(id) < 40]


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_captions_of_one_picture_do_not_compete(loss: str) -> None:
    """Each set of captions is contrasted by itself, by open_clip's loss on normalised vectors."""
    from open_clip.loss import ClipLoss, SigLipLoss
    from torch.nn.functional import normalize

    model = torch.nn.Module()
    model.logit_scale = torch.nn.Parameter(torch.tensor(0.0))
    objective = Objective(model, loss, from_scratch=True)
    images, texts, others = torch.randn(7, 5), torch.randn(7, 5), torch.randn(7, 5)
    vectors = [normalize(some, dim=-1) for some in (images, texts, others)]
    scale, bias = (1 / 0.07, None) if loss == "infonce" else (10.0, -10.0)
    expected = [{"infonce": ClipLoss, "siglip": SigLipLoss}[loss]()(vectors[0], v, scale, bias) for v in vectors[1:]]
    assert objective(images, texts[None]).item() == pytest.approx(expected[0].item(), rel=1e-5)
    both = objective(images, torch.stack([texts, others]))
    assert both.item() == pytest.approx(sum(map(float, expected)) / 2, rel=1e-5)


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_the_loss_by_rows_is_that_of_the_batch(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for logits in (2**26, 3 * 11):
        monkeypatch.setattr(gradcache, "LOGITS", logits)
        torch.manual_seed(0)
        model = torch.nn.Module()
        model.logit_scale = torch.nn.Parameter(torch.tensor(0.0))
        objective = Objective(model, loss, from_scratch=True)
        weights = torch.nn.Parameter(torch.randn(6, 5))
        pictures, texts = torch.randn(11, 6) @ weights, torch.randn(2, 11, 6) @ weights
        whole = gradcache.full_batch_gradient(lambda *_, p=pictures, t=texts: (p, t), [None], objective, [weights])
        made.append([whole, weights.grad, *(p.grad for p in objective.parameters())])
    for one, other in zip(*made, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_rate_rises_then_falls() -> None:
    shares = [rate_share(step, 100, 10, "cosine") for step in range(1, 101)]
    assert shares[0] == 0.1
    assert shares[9] == 1.0
    assert shares[-1] == pytest.approx(0.0)
    assert all(a > b for a, b in pairwise(shares[9:]))
    assert rate_share(55, 100, 10, "linear") == pytest.approx(0.5) == rate_share(55, 100, 10, "cosine")
    assert rate_share(100, 100, 10, "linear", 0.2) == rate_share(100, 100, 10, "cosine", 0.2) == 0.2
    assert {rate_share(step, 100, 10, "constant") for step in range(10, 101)} == {1.0}
    known = get_cosine_schedule_with_warmup(AdamW([torch.zeros(1)], 1.0), 7, 61)
    for step in range(61):
        assert rate_share(step, 61, 7, "cosine") == known.get_last_lr()[0], "bit for bit that of transformers"
        known.optimizer.step()
        known.step()


def test_each_picture_stands_once_in_an_epoch() -> None:
    def made(epoch: int) -> Iterator[Any]:
        return batches([1, 2, 3, 4, 5] * 5, 8, 3, 5, 0, epoch)

    found = list(made(1))
    assert len(found) == 3, "a last batch of one has no negatives"
    assert len(set(np.concatenate([b.pictures for b in found]))) == 24
    for batch in found:
        assert batch.captions.shape == (5, len(batch.pictures))
        assert (batch.captions.max(0) == np.array([1, 2, 3, 4, 5] * 5)[batch.pictures] - 1).all()
    assert [b.pictures.tolist() for b in made(1)] == [b.pictures.tolist() for b in found]
    assert [b.pictures.tolist() for b in made(2)] != [b.pictures.tolist() for b in found]


def test_retrieval_by_hand() -> None:
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]])
    found = retrieval(images, texts, torch.tensor([0, 0, 1, 2]))  # the second caption is nearest to the wrong picture
    assert found["text_to_image_r1"] == 0.75
    assert found["image_to_text_r1"] == pytest.approx(2 / 3, abs=1e-5), "a tie counts against the model"
    assert found["gap"] == pytest.approx(0.75 - 1 / 8)
