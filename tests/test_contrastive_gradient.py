"""The gradient of a contrastive batch: in parts, in processes, and whole, it is the same."""

import os
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from helpers import records, shapes
from torch import Tensor, distributed, nn
from torch.nn.functional import dropout
from vlm_data import together
from warm import Start

from vlmkit.train.contrastive import gradcache
from vlmkit.train.contrastive.gradcache import full_batch_gradient
from vlmkit.train.contrastive.losses import Objective

pytestmark = pytest.mark.slow


def losses_of(log: list[dict]) -> list[float]:
    return [line["loss"] for line in log if "loss" in line]


class Toy(nn.Module):
    """Two linear towers with dropout; a part is (pictures (b, 5), captions (C, b, 7))."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.image, self.text, self.drop = nn.Linear(5, 4), nn.Linear(7, 4), drop
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.features: list[Tensor] = []

    def embed(self, part: tuple[Tensor, Tensor], again: bool = False) -> tuple[Tensor, Tensor]:
        images, texts = self.image(dropout(part[0], self.drop)), self.text(dropout(part[1], self.drop))
        self.features.append(torch.cat([images, *texts]).detach())
        return images, texts


def toy_gradient(
    loss: str, sizes: list[int], drop: float = 0.0, kind: torch.dtype = torch.float64
) -> tuple[float, dict[str, Tensor], Toy]:
    """(loss, gradients, model) of one fixed batch in parts of `sizes`."""
    torch.manual_seed(0)
    model = Toy(drop).to(kind)
    objective = Objective(model, loss)
    pictures, captions = torch.randn(8, 5).to(kind), torch.randn(3, 8, 7).to(kind)
    parts = list(zip(pictures.split(sizes), captions.split(sizes, 1), strict=True))
    value = full_batch_gradient(model.embed, parts, objective, list(model.parameters()))
    return value.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, model


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_parts_make_the_gradient_of_the_whole_batch(loss: str) -> None:
    whole, gradients, _ = toy_gradient(loss, [8])
    torch.manual_seed(0)
    alone = Toy(0.0).double()
    pictures, captions = torch.randn(8, 5).double(), torch.randn(3, 8, 7).double()
    expected = Objective(alone, loss)(*alone.embed((pictures, captions)))  # plain autograd
    expected.backward()
    assert whole == expected.item()
    for name, parameter in alone.named_parameters():
        assert torch.equal(gradients[name], parameter.grad), name
    for sizes in ([4, 4], [2] * 4, [1] * 8, [5, 3]):
        value, found, _ = toy_gradient(loss, sizes)
        assert value == pytest.approx(whole, abs=1e-12)
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


def shared_gradient(loss: str, sizes: list[int], rank: int, folder: Path) -> None:
    """Write to `folder` what process `rank` finds of the fixed batch, of which it has `sizes[rank]` pairs."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(len(sizes))}
    distributed.init_process_group("gloo", f"file://{folder}/met", rank=rank, world_size=len(sizes))
    torch.manual_seed(0)
    model = Toy(0.0)
    objective = Objective(model, loss)
    pictures, captions = torch.randn(8, 5), torch.randn(3, 8, 7)
    own = list(zip(pictures.split(sizes)[rank].split(1), captions.split(sizes, 1)[rank].split(1, 1), strict=True))
    value = full_batch_gradient(model.embed, own, objective, list(model.parameters()), sizes)
    torch.save((value, [p.grad for p in model.parameters()]), folder / str(rank))
    distributed.destroy_process_group()


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
@pytest.mark.parametrize("sizes", [[5, 3], [2, 2, 2, 2]])
def test_processes_find_the_gradient_of_the_whole_batch(
    loss: str, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By gloo, each a row of logits at a time, in float32."""
    monkeypatch.setattr(gradcache, "LOGITS", 8)
    runs = [get_context("fork").Process(target=shared_gradient, args=(loss, sizes, i, tmp_path)) for i in (0, 1, 2, 3)]
    runs = runs[: len(sizes)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    whole, gradients, _ = toy_gradient(loss, [8], kind=torch.float32)
    for rank in range(len(sizes)):
        value, found = torch.load(tmp_path / str(rank))
        assert value.item() == pytest.approx(whole, rel=1e-5)
        for one, other in zip(gradients.values(), found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


def test_parts_see_the_same_dropout_twice() -> None:
    _, _, model = toy_gradient("infonce", [4, 4], drop=0.5)
    assert len(model.features) == 4
    assert torch.equal(model.features[0], model.features[2]) and torch.equal(model.features[1], model.features[3])
    assert not torch.equal(model.features[0], model.features[1])


def test_two_processes_are_one(start: Start, tmp_path: Path) -> None:
    """The last batch of each epoch, of 4 pictures, is shared out too; so is validation agreed upon."""
    shapes(tmp_path)
    words = ["train", "contrastive", "shapes.tar", "--preset", "debug", "--batch-size", "12", "--steps", "8", "-q"]
    words += ["--captions", "2", "--val", "shapes.tar", "--save-steps", "100", "--device", "cpu", "-o"]
    one = records(start(tmp_path, *words, "one").done().stdout)
    two = together(start, tmp_path, [*words, "two"], 2)
    assert [line["step"] for line in two] == [line["step"] for line in one], "one process alone tells"
    assert losses_of(two) == pytest.approx(losses_of(one), abs=1e-4)
    recalls = [[line["mean_recall"] for line in log if "mean_recall" in line] for log in (one, two)]
    assert recalls[1] == pytest.approx(recalls[0], abs=0.02)
