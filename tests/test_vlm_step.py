"""One step of align and instruct: attention in blocks, logits in chunks, rates, precision, what is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import records
from safetensors.torch import load_file
from torch.nn.attention.flex_attention import create_mask
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from vlm_data import SIZES, line, write_data, write_towers
from warm import Start

from vlmkit.cli.app import main
from vlmkit.models.llava.model import build, open_vlm
from vlmkit.train.config import InstructConfig
from vlmkit.train.cost import Sizes, memory
from vlmkit.train.vlm import loss as losses
from vlmkit.train.vlm.attention import BLOCK, choose_attention, packed_attention_mask, packed_block_mask
from vlmkit.train.vlm.lora import add_adapters, freeze
from vlmkit.train.vlm.loss import PackedLossModel
from vlmkit.train.vlm.sft import SftTrainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Path:
    folder = write_towers(write_data(tmp_path_factory.mktemp("data")))
    start(folder, *line(folder, "align", "captions", "aligned")).done()
    return folder


def rows(*segments: list[list[int]], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Segment and branch ids (R, width) of rows of segments, each a list of the lengths of its branches."""
    segment_ids, branch_ids = torch.full((len(segments), width), -1), torch.zeros(len(segments), width, dtype=torch.int)
    for row, lengths in enumerate(segments):
        place = 0
        for segment, branches in enumerate(lengths):
            for branch, length in enumerate(branches):
                segment_ids[row, place : place + length] = segment
                branch_ids[row, place : place + length] = branch
                place += length
    return segment_ids, branch_ids


PACKED = [[100, 30, 40], [200], [5, 5, 5], [90, 3]], [[380]], [[1], [2, 1], [130, 120]]


def test_blocks_are_the_mask() -> None:
    segment_ids, branch_ids = rows(*PACKED, width=4 * BLOCK)
    expected = packed_attention_mask(segment_ids, branch_ids)
    blocks = packed_block_mask(segment_ids, branch_ids)
    whole = create_mask(blocks.mask_mod, len(PACKED), 1, 4 * BLOCK, 4 * BLOCK, "cpu")[:, 0]
    assert torch.equal(whole, expected)
    taken = blocks.to_dense()[:, 0].bool().repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
    assert not (expected & ~taken).any(), "no pair is in a block that is left out"
    assert taken[1].float().mean() < 0.7 > taken[2].float().mean(), "what is above the diagonal, and other segments, is"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_attention_with_a_mask(data: Path) -> None:
    torch.manual_seed(1)
    model = build(str(data / "clip"), str(data / "qwen2"), "mlp").model.eval()  # heads that share their keys
    segment_ids, branch_ids = rows(*PACKED, width=517)
    positions = (segment_ids >= 0).nonzero()
    inputs = {
        "input_ids": torch.randint(10, (len(PACKED), 517)),
        "position_ids": torch.arange(517).expand(len(PACKED), -1),
        "segment_ids": segment_ids,
        "branch_ids": branch_ids,
        "label_positions": positions[:, 0] * 517 + positions[:, 1],
    }
    learner = PackedLossModel(model)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        exact = learner.hidden(**inputs)
        choose_attention(model.model.language_model, "flex", "cpu")
        found = learner.hidden(**inputs)
    assert torch.allclose(found, exact, atol=1e-5) and not torch.equal(found, exact)


def test_logits_by_chunks_change_nothing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(str(data / "clip"), str(data / "llama"), "mlp").model
    learner = PackedLossModel(model, smoothing=0.1)
    hidden = torch.randn(23, model.config.text_config.hidden_size, requires_grad=True)
    monkeypatch.setattr(learner, "hidden", lambda **_: hidden)
    labels, weights = torch.randint(20, (23,)), torch.rand(23)
    made = []
    for chunk in (2048, 7):
        monkeypatch.setattr(losses, "CHUNK", chunk)
        loss = learner(labels, weights, pixel_values=torch.zeros(1))
        made.append([loss, *torch.autograd.grad(loss, [hidden, model.lm_head.weight])])
    for one, other in zip(*made, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def log(start: Start, place: Path, words: list[str]) -> list[dict]:
    return [entry for entry in records(start(place, *words).done().stdout) if "loss" in entry]


def test_the_schedule_and_its_lowest_rate(data: Path, start: Start, tmp_path: Path) -> None:
    words = line(data, "align", "captions", "out", "--schedule", "linear", "--min-lr", "2e-4", "--warmup", "0.5")
    rates = [entry["lr"] for entry in log(start, tmp_path, [*words, "--steps", "4"])]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 6e-4])
    words = line(data, "align", "captions", "flat", "--schedule", "constant", "--warmup", "0")
    assert [entry["lr"] for entry in log(start, tmp_path, words)] == [1e-3] * 3


def test_bf16_is_near_fp32(data: Path, start: Start, tmp_path: Path) -> None:
    flags = ("--from", data / "aligned", "--lora", "2")
    exact, rough = (
        log(start, tmp_path, line(data, "instruct", "mixed", name, *flags, "--precision", name, towers=False))
        for name in ("fp32", "bf16")
    )
    losses = [[entry["loss"] for entry in some] for some in (exact, rough)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]
    folders = [load_file(tmp_path / name / "model.safetensors") for name in ("fp32", "bf16")]
    assert {value.dtype for value in folders[1].values()} == {torch.float32}
    same = [name for name, value in folders[0].items() if torch.equal(value, folders[1][name])]
    assert any("vision_tower" in name for name in same), "what is frozen is as it was, not rounded"


@pytest.mark.parametrize("flags", [[], ["--checkpointing"]])
def test_the_vision_tower_is_trained_when_asked(data: Path, start: Start, tmp_path: Path, flags: list[str]) -> None:
    own = "--train-vision", "--vision-lr", "1e-3", *flags
    start(tmp_path, *line(data, "instruct", "mixed", "out", "--from", data / "aligned", *own, towers=False)).done()
    before, after = (load_file(folder / "model.safetensors") for folder in (data / "aligned", tmp_path / "out"))
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    tower = {name for name in after if "vision_tower" in name}
    last = max(name.split("layers.")[1].split(".")[0] for name in tower if "layers." in name)
    unused = {name for name in tower if f"layers.{last}." in name or "post_layernorm" in name}
    assert tower & moved == tower - unused, "but for what the features do not depend on"


def test_a_tower_without_weights_cannot_be_trained(data: Path, start: Start, tmp_path: Path) -> None:
    words = line(data, "align", "captions", "out", "--vision", "patches", "--train-vision")
    done = start(tmp_path, *words).done(2)
    assert done.stderr.startswith(b"vlmkit: the tower ") and b"leave --train-vision out" in done.stderr


def test_the_estimate_of_memory_is_what_a_layer_keeps(data: Path) -> None:
    """Of the tensors that autograd saves; weights aside."""
    model: Any = AutoModelForCausalLM.from_pretrained(data / "qwen2", dtype=torch.float32)
    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    embeds = torch.randn(1, 256, model.config.hidden_size, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        model.model(inputs_embeds=embeds, use_cache=False)
    found = sum(x.untyped_storage().nbytes() for place, x in kept.items() if place not in weights)
    layers, width, inner = (SIZES[name] for name in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    sizes = Sizes(0, 0, 0, 0, layers, width, inner, vocabulary=0)
    assert memory(sizes, 256, 0, 4, masters=False) == pytest.approx(found, rel=0.35)


class Waits(TorchDispatchMode):
    """Notes the operations for whose result, or the size of it, the CPU would have to wait for a GPU."""

    names = "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])
        if name in self.names or by_mask:
            self.noted.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_no_micro_batch_waits_for_the_device(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, step = Waits(), SftTrainer.training_step

    def noted(*args: Any, **rest: Any) -> torch.Tensor:
        with waits:
            return step(*args, **rest)

    monkeypatch.setattr(SftTrainer, "training_step", noted)
    words = line(data, "instruct", "mixed", str(tmp_path / "out"), "--from", data / "aligned", towers=False)
    assert main([*words, "--accumulate", "2", "--max-tokens-per-batch", "60", "--device", "cpu"]) == 0
    assert waits.noted == []
    with waits:
        torch.ones(3)[torch.ones(3) > 0].sum().item()
    assert waits.noted == ["index", "_local_scalar_dense"], "it would have been seen"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft's use of transformers
def test_qlora_trains_adapters_on_4_bits(data: Path, start: Start, tmp_path: Path) -> None:
    """peft takes its own layers for 4-bit weights; the run is near that on whole weights, and merges into these."""
    pytest.importorskip("bitsandbytes")
    bnb = pytest.importorskip("peft.tuners.lora.bnb")
    four_bit = InstructConfig(data=[], out=tmp_path, lora=2, quantize="4bit", precision="bf16")
    for vlm in (build(str(data / "clip"), str(data / "llama"), "mlp", "cpu"), open_vlm(str(data / "aligned"), "cpu")):
        freeze(vlm, four_bit)
        add_adapters(vlm.model, four_bit)
        layer = vlm.model.model.language_model.layers[0]
        assert isinstance(layer.self_attn.q_proj, bnb.Linear4bit) and isinstance(layer.mlp.up_proj, bnb.Linear4bit)
        assert layer.input_layernorm.weight.dtype == vlm.model.lm_head.weight.dtype == torch.float32
        trained = {name for name, value in vlm.model.named_parameters() if value.requires_grad}
        assert trained and all("lora_" in name or "multi_modal_projector" in name for name in trained)
    flags = "--from", data / "aligned", "--lora", "2"
    exact = log(start, tmp_path, line(data, "instruct", "mixed", "exact", *flags, towers=False))
    rough = log(start, tmp_path, line(data, "instruct", "mixed", "rough", *flags, "--quantize", "4bit", towers=False))
    assert [row["loss"] for row in rough] == pytest.approx([row["loss"] for row in exact], rel=0.1)
    folders = [load_file(folder / "model.safetensors") for folder in (data / "aligned", tmp_path / "rough")]
    moved = [name for name, value in folders[0].items() if not torch.equal(value, folders[1][name])]
    assert all("_proj" in name for name in moved) and any("down_proj" in name for name in moved)
