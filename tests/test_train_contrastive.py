"""`vlmkit train contrastive` of dual encoders: what it makes, however it is run."""

import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import dual_encoders
import pytest
import torch
from helpers import SHAPE_WORDS, jpeg, jsonl, records, shapes, tiny_towers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from warm import Start, Warm

from vlmkit.cli.app import main
from vlmkit.errors import VlmkitError
from vlmkit.io.terminal import Failures
from vlmkit.train.checkpoints import checkpoints, commit_checkpoint, explain_full_disk
from vlmkit.train.config import ContrastiveConfig, LitConfig
from vlmkit.train.contrastive.run import open_model, plan, train
from vlmkit.train.contrastive.sampler import batches, read_pictures

pytestmark = pytest.mark.slow

Line = dict[str, Any]
LOCKED = [*product(("clip", "open_clip_siglip"), ("image", "text", "none")), ("siglip", "image")]
LOCKED += [("siglip", "none"), ("siglip2", "text"), ("open_clip_quick_gelu", "image"), ("open_clip_quick_gelu", "text")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shapes.tar, image-tower and text-tower."""
    folder = tmp_path_factory.mktemp("contrastive")
    shapes(folder)
    tiny_towers(folder, SHAPE_WORDS)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The small model of a family, made when first asked for."""
    folder = tmp_path_factory.mktemp("models")

    def model(family: str) -> Path:
        path = folder / family
        return path if path.exists() else getattr(dual_encoders, family)(path)

    return model


def config(place: Path, out: Path, start: Path | str = "tiny", **changes: Any) -> ContrastiveConfig:
    some: Line = {"lr": 1e-3, "batch_size": 16, "steps": 4, "log_every": 1}
    return ContrastiveConfig(data=[str(place / "shapes.tar")], out=out, start=str(start), **(some | changes))


def ran(settings: ContrastiveConfig) -> list[Line]:
    """Train: what was logged."""
    log: list[Line] = []
    train(settings, log.append)
    return log


def losses(log: list[Line]) -> list[float]:
    return [line["loss"] for line in log if "loss" in line]


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


DEBUG = ("--preset", "debug", "--val", "0.2", "--accumulate", "2", "--captions", "2", "--seed", "3")


@pytest.fixture(scope="module")
def debug(place: Path, start: Start) -> tuple[Path, list[Line]]:
    """(model, log) of a run in debug, by the command."""
    done = start(place, "train", "contrastive", "shapes.tar", *DEBUG, "-o", "debug").done()
    read, split = done.stderr.splitlines()
    assert read == b"vlmkit: shapes.tar: 64 rows read, 64 kept (64 samples), 0 dropped"
    assert re.fullmatch(rb"vlmkit: (\d+) of these samples held out for validation, (\d+) to train on", split)
    assert sum(map(int, re.findall(rb"\d+", split))) == 64
    return place / "debug", records(done.stdout)


def test_debug_learns_and_tells(debug: tuple[Path, list[Line]]) -> None:
    folder, log = debug
    assert [line["step"] for line in log if "loss" in line] == list(range(1, 21))
    fields = {"epoch", "step", "loss", "lr", "grad_norm", "logit_scale", "samples_per_s", "memory_gb"}
    assert all(fields == set(line) for line in log if "loss" in line)
    validations = [line for line in log if "mean_recall" in line]
    assert validations[0]["step"] == 0, "retrieval is measured before the first step"
    assert {line["step"] for line in validations} >= {5, 10, 15, 20}, "and every --save-steps"
    assert validations[-1]["mean_recall"] > validations[0]["mean_recall"] + 0.2
    assert validations[-1]["gap"] > validations[0]["gap"] + 0.1
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "mean recall" in (folder / "README.md").read_text()
    assert checkpoints(folder / "checkpoints"), "the last ones stay"


def test_embed_and_transformers_open_it(debug: tuple[Path, list[Line]], place: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    assert main(["embed", str(place / "shapes.tar"), "-m", str(debug[0]), "-o", str(place / "embedded")]) == 0
    found = records((place / "embedded").read_bytes())
    assert len(found) == 64 and all("/debug@" in row["model"] for row in found)
    _, info = CLIPModel.from_pretrained(debug[0], output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokens = CLIPProcessor.from_pretrained(debug[0]).tokenizer("a red circle, on gray é")
    assert len(tokens.input_ids) > 6


def test_its_settings_repeat_it(debug: tuple[Path, list[Line]], place: Path, start: Start) -> None:
    start(place, "train", "contrastive", "--config", "debug/train.toml", "-o", "again", "-q").done()
    assert digest(place / "again") == digest(debug[0])


@pytest.mark.parametrize("kind", ["dual", "towers"])
def test_a_killed_run_resumes_to_the_same_bytes(
    kind: str, debug: tuple[Path, list[Line]], place: Path, tmp_path: Path, start: Start
) -> None:
    data = ["train", "contrastive", str(place / "shapes.tar")]
    if kind == "dual":
        command, whole, kill = [*data, *DEBUG], debug[0], random.Random(0).randint(6, 15)
    else:
        towers = ["--vision", str(place / "image-tower"), "--text", str(place / "text-tower"), "--val", "0.2"]
        command = [*data, *towers, "--steps", "12", "--batch-size", "16", "--save-steps", "4", "--preset", "debug"]
        whole, kill = tmp_path / "whole", random.Random(1).randint(5, 10)
        start(tmp_path, *command, "-o", whole).done()
    out = tmp_path / "killed"
    print(f"killed at step {kill}")
    run = start(tmp_path, *command, "-o", out)
    run.wait_until(lambda: f'"step":{kill},'.encode() in run.stdout.read_bytes())
    run.kill()
    assert not (out / "model.safetensors").exists(), "it was to be killed before its end"
    left = checkpoints(out / "checkpoints")
    assert left and all((path / "trainer_state.json").exists() for path in left)
    start(tmp_path, *command, "-o", out).done(2)  # it goes on only when told to
    start(tmp_path, *command, "-o", out, "--lr", "0.5", "--resume").done(2)  # and with the same settings
    start(tmp_path, *command, "-o", out, "--resume").done()
    assert digest(out) == digest(whole)
    start(tmp_path, *command, "-o", out, "--resume").done()
    assert digest(out) == digest(whole), "what is finished stays"


@pytest.mark.parametrize(("family", "lock"), LOCKED)
def test_every_family_ends_in_its_own_form(
    family: str, lock: str, models: Callable[[str], Path], place: Path, tmp_path: Path
) -> None:
    start, out = models(family), tmp_path / "out"
    loss = "siglip" if lock == "none" else "infonce"
    ran(config(place, out, start, lock=lock, loss=loss, steps=2, batch_size=4))
    first = load_file(next(start.glob("*.safetensors")))
    found = load_file(out / "model.safetensors")
    assert found.keys() - first.keys() <= {"logit_bias"}
    image = ("visual.", "vision_model.", "visual_projection.")
    for side in ("image", "text"):
        names = [n for n in first if n.startswith(image) == (side == "image") and not n.startswith("logit_")]
        same = [torch.equal(first[name], found[name]) for name in names]
        assert all(same) if side == lock else not all(same), side
    if family.startswith("open_clip"):
        import open_clip

        model = open_clip.create_model(f"local-dir:{out}", load_weights=True)
        assert torch.equal(model.state_dict()["logit_scale"].flatten(), found["logit_scale"].flatten())
        assert open_clip.get_tokenizer(f"local-dir:{out}")(["a cat"]).shape[0] == 1
    else:
        from transformers import AutoModel

        _, info = AutoModel.from_pretrained(out, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]


@pytest.mark.parametrize("family", ["clip", "open_clip_siglip"])
def test_a_configuration_alone_starts_from_nothing(
    family: str, models: Callable[[str], Path], place: Path, tmp_path: Path
) -> None:
    empty = shutil.copytree(models(family), tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    ran(config(place, tmp_path / "out", empty, loss="siglip", steps=1, warmup=1.0))
    first = load_file(next(models(family).glob("*.safetensors")))
    found = load_file(tmp_path / "out" / "model.safetensors")
    name = next(name for name in first if name.endswith("token_embedding.weight"))
    assert first[name].shape == found[name].shape and not torch.equal(first[name], found[name])
    assert found["logit_scale"].exp().item() == pytest.approx(10, rel=0.01), "SigLIP's, from nothing"


def test_two_towers_are_joined_and_trained_whole(place: Path, tmp_path: Path) -> None:
    towers = {"vision": str(place / "image-tower"), "text": str(place / "text-tower"), "dim": 24}
    ran(replace(config(place, tmp_path / "out", **towers), start=None))
    found = load_file(tmp_path / "out" / "model.safetensors")
    trunk = load_file(place / "image-tower/model.safetensors")
    assert not torch.equal(found["visual.trunk.conv_stem.weight"], trunk["conv_stem.weight"])
    assert torch.equal(found["visual.trunk.bn1.running_mean"], trunk["bn1.running_mean"]), "learned statistics stay"
    assert main(["embed", str(place / "shapes.tar"), "-m", str(tmp_path / "out"), "-o", str(tmp_path / "x")]) == 0


@pytest.mark.parametrize("lock", ["none", "image"])
def test_a_run_in_parts_is_the_run(lock: str, models: Callable[[str], Path], place: Path, tmp_path: Path) -> None:
    some = {"lock": lock, "captions": 2, "loss": "siglip", "batch_size": 8}
    whole, parts = (ran(config(place, tmp_path / f"in{n}", models("clip"), accumulate=n, **some)) for n in (1, 4))
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)
    assert [line["grad_norm"] for line in parts] == pytest.approx([line["grad_norm"] for line in whole], rel=1e-4)


def test_a_loss_that_is_not_finite_stops_with_step_and_pictures(place: Path, tmp_path: Path) -> None:
    with pytest.raises(VlmkitError, match=r"the loss is nan at step 2, samples \S+/0\d\d.png, .*: try a lower rate"):
        ran(config(place, tmp_path / "out", lr=1e30, warmup=0.0, batch_size=8, save_steps=3))
    assert not (tmp_path / "out").exists(), "there was no checkpoint yet"


def test_the_logit_scale_is_clamped(models: Callable[[str], Path], place: Path, tmp_path: Path) -> None:
    start = shutil.copytree(models("clip"), tmp_path / "start")
    weights = load_file(start / "model.safetensors")
    weights["logit_scale"].fill_(9.0)
    save_file(weights, start / "model.safetensors", metadata={"format": "pt"})
    log = ran(config(place, tmp_path / "out", start, steps=2))
    assert [line["logit_scale"] for line in log] == pytest.approx([100, 100], rel=1e-5)
    assert load_file(tmp_path / "out/model.safetensors")["logit_scale"].exp().item() == pytest.approx(100)


def test_the_best_validation_wins_and_waiting_ends(debug: tuple[Path, list[Line]], place: Path, tmp_path: Path) -> None:
    """A rate that destroys: retrieval falls below what it was, which is told; the weights kept are the best ones."""
    notes: list[str] = []
    log: list[Line] = []
    settings = config(place, tmp_path / "out", debug[0], lr=0.05, steps=40, val=str(place / "shapes.tar"), patience=2)
    train(settings, log.append, note=notes.append)
    found = {line["step"]: line["mean_recall"] for line in log if "mean_recall" in line}
    assert max(found) < 40, "it stopped early"
    assert min(found.values()) < found[0]
    assert sum("retrieval fell below that of before step 1" in line for line in notes) >= 1
    best = max((value, -step) for step, value in found.items() if step)
    assert max(found) == -best[1] + 2 * 4, "two epochs of four steps after the best"
    again = ran(config(place, tmp_path / "again", tmp_path / "out", steps=1, val=str(place / "shapes.tar")))
    assert again[0]["mean_recall"] == best[0]


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.integers(2, 9),
    st.integers(0, 3),
)
def test_a_picture_stands_once_in_a_batch(times: list[int], size: int, seed: int) -> None:
    import numpy as np

    counts = [1 + number % 3 for number in range(len(times))]
    made = list(batches(counts, size, 2, 2, seed, 1, np.array(times), least=1))
    drawn = np.concatenate([batch.pictures for batch in made]) if made else np.array([], int)
    assert np.bincount(drawn, minlength=len(times)).tolist() == times
    assert all(len(set(batch.pictures)) == len(batch.pictures) <= size for batch in made)
    for batch in made:
        assert (batch.captions < np.array(counts)[batch.pictures]).all()
        parts = batch.parts(3)
        assert np.concatenate([part.captions for part in parts], axis=1).tolist() == batch.captions.tolist()


def test_rows_about_one_picture_are_one_sample(place: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(size=(9, 9)))
    rows = [{"image": "a.jpg", "caption": "one"}, {"image": "b.jpg", "captions": ["three"]}]
    rows += [{"image": "a.jpg", "captions": ["two", "one"]}]
    (tmp_path / "rows.jsonl").write_bytes(jsonl(*rows))
    coco = {"images": [{"id": 7, "file_name": "b.jpg"}], "annotations": [{"image_id": 7, "caption": "four"}]}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    found = read_pictures([f"2:{tmp_path}/rows.jsonl", str(tmp_path / "coco.json")], Failures())
    assert [sample.captions for sample in found.rows] == [("one", "two"), ("three", "four")]
    assert found.times(0).tolist() == [2, 2], "each by the weight of its first row"


def test_what_cannot_be_used_is_left_out(warm: Warm, place: Path, tmp_path: Path) -> None:
    (tmp_path / "whole.jpg").write_bytes(jpeg())
    (tmp_path / "other.jpg").write_bytes(jpeg("blue"))
    (tmp_path / "torn.jpg").write_bytes(jpeg()[:-40])
    rows: list[Line] = [{"image": f"{name}.jpg", "captions": [name]} for name in ("whole", "other", "torn", "gone")]
    rows += [{"image": "whole.jpg"}, {"image": "whole.jpg", "captions": []}, {"image": "whole.jpg", "captions": [" "]}]
    done = warm(
        *("train", "contrastive", "-", "--preset", "debug", "--dry-run", "-o", "out", "--errors", "errors.jsonl"),
        stdin=jsonl(*rows),
        code=3,
    )
    (estimate,) = records(done.stdout)
    assert estimate["samples"] == estimate["samples_per_step"] == 2 and estimate["steps"] == 20
    assert estimate["trainable_parameters"] == estimate["total_parameters"] > 100_000
    assert estimate["memory_gb"] >= 0 and estimate["seconds"] > 0
    assert len(records((tmp_path / "errors.jsonl").read_bytes())) == 5
    assert not (tmp_path / "out").exists()
    done = warm("train", "contrastive", place / "shapes.tar", "--preset", "debug", "--dry-run", "--epochs", "2")
    (estimate,) = records(done.stdout)
    assert (estimate["samples"], estimate["samples_per_step"], estimate["steps"]) == (64, 16, 8)


WRONG = {
    "--preset huge": "unknown preset huge",
    "--loss mse": "--loss mse is unknown",
    "--lock both": "--lock both is unknown",
    "--from tiny --vision x": "tiny brings its own towers",
    "--from mini": "mini is packed for use",
    "--from no/folder": "no/folder",
    "--from ViT-B-23": "unknown model ViT-B-23",
    "--llm x": "--llm is not for contrastive: leave it out, it is for align, instruct, prefer",
    "--preset debug --report-to paper": "--report-to paper is unknown",
    "--preset debug --batch-size 1": "--batch-size 1 is too small",
    "--preset debug --val 1.5": "not between 0 and 1",
}


@pytest.mark.parametrize("flags", WRONG)
def test_bad_input_is_one_line(
    flags: str, place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = ["train", "contrastive", str(place / "shapes.tar"), "-o", str(tmp_path / "out"), *flags.split()]
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    line = err.splitlines()[-1]
    assert line.startswith("vlmkit: ") and WRONG[flags] in line
    assert all("rows read" in other for other in err.splitlines()[:-1])
    assert "loss" not in out and not (tmp_path / "out").exists()


def test_a_folder_of_another_run_is_left_alone(
    debug: tuple[Path, list[Line]], place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = digest(debug[0])
    assert main(["train", "contrastive", str(place / "shapes.tar"), "--preset", "debug", "-o", str(debug[0])]) == 2
    assert "holds a finished run" in capfd.readouterr().err
    assert digest(debug[0]) == before


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_last_one(tmp_path: Path) -> None:
    def write(step: int, error: Exception | None) -> None:
        with explain_full_disk(lambda: f"the checkpoint of step {step}", tmp_path):
            (tmp_path / f".partial/checkpoint-{step}").mkdir(parents=True)
            if error:
                raise error
        commit_checkpoint(tmp_path, step)

    write(1, None)
    with pytest.raises(VlmkitError, match=r"step 2 cannot be written.*checkpoint-1 is complete"):
        write(2, OSError(28, "No space left on device"))
    of_torch = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 134784 vs 134672")
    with pytest.raises(VlmkitError, match=r"step 4 cannot be written \(the disk is full\), checkpoint-1 is complete"):
        write(4, of_torch)
    with pytest.raises(PermissionError):
        write(3, PermissionError(13, "Permission denied"))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1"]


def test_lit_and_whole_training_agree_before_the_first_step(place: Path, tmp_path: Path) -> None:
    """Features from memory are those of the pictures: both kinds of run measure the same retrieval."""
    towers: Line = {"vision": str(place / "image-tower"), "text": str(place / "text-tower"), "dim": 24}
    data = {"data": [str(place / "shapes.tar")], "val": str(place / "shapes.tar"), "batch_size": 16}
    kinds = (LitConfig(out=tmp_path / "a", **towers, **data), ContrastiveConfig(out=tmp_path / "b", **towers, **data))
    found = []
    for kind in kinds:
        made = plan(kind, Failures())
        with open_model(kind, made, 4) as learner:
            found.append(learner.validate(0))
    assert found[0]["gap"] == pytest.approx(found[1]["gap"], abs=2e-3)
    assert found[0]["text_to_image_r10"] == pytest.approx(found[1]["text_to_image_r10"], abs=0.03)


@pytest.mark.parametrize("kind", ["dual encoder", "locked tower"])
def test_captions_longer_than_the_context_are_counted(
    kind: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"image": f"{n}.jpg", "captions": ["a red square"] + ["red blue " * 60] * (n < 3)} for n in range(8)]
    for number in range(8):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg("red", (32, 24 + number)))
    (tmp_path / "long.jsonl").write_bytes(jsonl(*rows))
    data: Line = {"data": [str(tmp_path / "long.jsonl")], "batch_size": 4, "steps": 1}
    towers = {"vision": str(place / "image-tower"), "text": str(place / "text-tower"), "dim": 24}
    if kind == "dual encoder":
        ran(replace(config(place, tmp_path / "out"), **data))
    else:
        train(LitConfig(out=tmp_path / "out", **towers, **data), lambda _: None)
    assert "3 texts are longer than the" in capsys.readouterr().err
