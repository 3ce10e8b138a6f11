"""train align and instruct of BLIP-2 and InstructBLIP, against the documented call of transformers; random weights."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from helpers import jsonl, picture, records
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, Blip2ForConditionalGeneration, InstructBlipForConditionalGeneration
from warm import Start

from vlmkit.io.terminal import Failures
from vlmkit.train.config import Stage, load_config
from vlmkit.train.qformer.model import QFormerLossModel
from vlmkit.train.qformer.run import QFormerStage, prepare

COLORS = ["red", "green", "blue", "black"]
KINDS = {"opt": Blip2ForConditionalGeneration, "t5": Blip2ForConditionalGeneration}
KINDS |= {"instruct": InstructBlipForConditionalGeneration}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qformer")
    families.blip2(folder / "opt", families.opt())
    families.blip2(folder / "t5", families.t5(), 2)
    families.instructblip(folder / "instruct", families.opt())
    for color in COLORS:
        picture(folder / f"{color}.png", color)
    rows = [{"id": c, "image": f"{c}.png", "question": "what color is the car?", "answer": c} for c in COLORS]
    (folder / "questions.jsonl").write_bytes(jsonl(*rows))
    captions = [{"id": c, "image": f"{c}.png", "captions": [f"the {c} dog", f"a {c} boat"]} for c in COLORS]
    (folder / "captions.jsonl").write_bytes(jsonl(*captions))
    return folder


@contextmanager
def stage(data: Path, name: str, rows: str = "questions", **settings: Any) -> Iterator[QFormerStage]:
    given = {"start": str(data / name), "data": [str(data / f"{rows}.jsonl")], "out": data / "out", "batch_size": 4}
    with prepare(load_config(Stage.INSTRUCT, given | settings), Failures(), True) as made:
        yield made


def line(data: Path, name: str, out: Path | str, *more: object, rows: str = "questions") -> list[str]:
    words = ["train", "instruct", data / f"{rows}.jsonl", "--from", data / name, "-o", out, "--steps", 4]
    words += ["--batch-size", 4, "--log-every", 1, "--projector-lr", 1e-3, "--lr", 1e-3, "-q", *more]
    return list(map(str, words))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rows", ["questions", "captions"])
def test_loss_is_that_of_the_documented_call(data: Path, name: str, rows: str) -> None:
    """`model(**processor(images, text), labels=...)`, each sample alone, weighed by its labels."""
    model = KINDS[name].from_pretrained(data / name).eval()
    processor = AutoProcessor.from_pretrained(data / name)
    end, total, count = model.language_model.generation_config.eos_token_id, 0.0, 0
    question = "Question: what color is the car? Answer:" if name != "instruct" else "what color is the car?"
    for color in COLORS:
        prompt, replies = question, [color]
        if rows == "captions":
            prompt = "Write a description for the image." if name == "instruct" else ""
            replies = [f"the {color} dog", f"a {color} boat"]
        shown = Image.open(data / f"{color}.png")
        for reply in replies:
            inputs = processor(images=shown, text=prompt, return_tensors="pt")
            if name == "t5":
                bare = processor(images=shown, text="x", return_tensors="pt")["input_ids"][:, : families.QUERIES]
                if not prompt:  # as `generate` begins without a text
                    inputs["input_ids"] = torch.cat([bare, torch.tensor([[model.config.text_config.bos_token_id]])], 1)
                    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
                labels = processor.tokenizer(reply, return_tensors="pt").input_ids
            else:
                text = f"{prompt} {reply}" if prompt else reply
                whole = processor(images=shown, text=text, return_tensors="pt")
                before = inputs["input_ids"].shape[1]
                ids = torch.cat([whole["input_ids"], torch.tensor([[end]])], 1)
                labels = ids.clone()
                labels[:, :before] = -100
                inputs["input_ids"], inputs["attention_mask"] = ids, torch.ones_like(ids)
            with torch.no_grad():
                own = int((labels != -100).sum())
                total += float(model(**inputs, labels=labels).loss) * own
                count += own
    with stage(data, name, rows) as made:
        learner = QFormerLossModel(made.opened.model, made.config).eval()
        trainer = made.trainer(data / "none", lambda record: None)
        names = {"names", "tokens", "slots"}
        found, labels = 0.0, 0
        for batch in trainer.get_train_dataloader():
            with torch.no_grad():
                found += float(learner(**{key: value for key, value in batch.items() if key not in names}))
            labels += len(batch["weights"])
            if labels >= count:
                break
    assert labels == count and found / count == pytest.approx(total / count, rel=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_trained_folder(data: Path, name: str, start: Start, vlmkit, tmp_path: Path) -> None:
    """Queries, Q-Former and projection are trained, nothing else; it opens in transformers and answers."""
    rows = "captions" if name == "t5" else "questions"
    log = records(start(tmp_path, *line(data, name, "out", "--val", data / f"{rows}.jsonl", rows=rows)).done().stdout)
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0] and log[-1]["val_loss"] < log[0].get("val_loss", losses[0] + 1)
    before, after = (load_file(folder / "model.safetensors") for folder in (data / name, tmp_path / "out"))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert before.keys() == after.keys() and changed
    trained = {key for key in before if key.startswith(("query_tokens", "qformer", "language_projection"))}
    assert changed <= trained and len(changed) > len(trained) // 2
    _, report = KINDS[name].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    answer = ["what color is the car?"] if rows == "questions" else []
    assert vlmkit("ask" if answer else "caption", data / "red.png", *answer, "-m", tmp_path / "out", "--json").stdout
    if name == "opt":
        checks = records(vlmkit("train", "check", "out").stdout)
        assert all(check["ok"] for check in checks) and len(checks) == 4


@pytest.mark.slow
def test_killed_and_resumed_it_ends_in_the_same_bytes(data: Path, start: Start, tmp_path: Path) -> None:
    """With the Q-Former's own dropout, and with adapters, which are merged in the folder."""
    flags = line(data, "instruct", "out", "--save-steps", 2, "--lora", 2, "--steps", 8)
    whole = start(tmp_path / "whole", *flags)
    killed = start(tmp_path / "killed", *flags)
    killed.wait_until(lambda: killed.lines() >= 5)
    killed.kill()
    assert not (tmp_path / "killed/out/model.safetensors").exists()
    whole.done()
    resumed = records(start(tmp_path / "killed", *flags, "--resume").done().stdout)
    assert min(entry["step"] for entry in resumed) > 2
    folders = [tmp_path / name / "out" for name in ("whole", "killed")]
    assert [path.name for path in sorted(folders[0].iterdir())] == [path.name for path in sorted(folders[1].iterdir())]
    for path in folders[0].iterdir():
        assert path.is_dir() or path.read_bytes() == (folders[1] / path.name).read_bytes(), path.name
    before, made = (load_file(folder / "model.safetensors") for folder in (data / "instruct", folders[0]))
    assert made.keys() == before.keys()
    changed = {key.split(".")[0] for key in made if not torch.equal(made[key], before[key])}
    assert changed == {"query_tokens", "qformer", "language_projection", "language_model"}


@pytest.mark.slow
def test_parts_of_a_batch_change_rounding_alone(data: Path, start: Start, tmp_path: Path) -> None:
    """A batch of samples of unequal length in two parts: labels weigh the same, wherever they are."""
    still = shutil.copytree(data / "opt", tmp_path / "still")
    config = json.loads((still / "config.json").read_text())
    config["qformer_config"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(config))
    rows = [json.loads(row) for row in (data / "questions.jsonl").read_text().splitlines()]
    rows[0]["answer"] = "a child's hat, two men at the shop"
    rows = [row | {"image": str(data / row["image"])} for row in rows]
    (tmp_path / "uneven.jsonl").write_bytes(jsonl(*rows))
    words = ["train", "align", tmp_path / "uneven.jsonl", "--from", still, "--steps", 3, "--log-every", 1]
    words += ["--batch-size", 4, "-q"]
    running = [start(tmp_path, *words, "--accumulate", n, "-o", f"out{n}") for n in (1, 2)]
    one, two = ([entry["loss"] for entry in records(run.done().stdout)] for run in running)
    assert one == pytest.approx(two, rel=1e-4) and one[0] != one[-1]


def test_rows_and_settings_without_use(data: Path, warm, tmp_path: Path) -> None:
    shown = str(data / "red.png")
    turns = [{"from": who, "value": said} for who, said in [("human", "is it red?"), ("gpt", "yes")] * 2]
    odd = [
        {"id": "two", "images": [shown, shown], "question": "red?", "answer": "yes"},
        {"id": "none", "question": "red?", "answer": "yes"},
        {"id": "system", "image": shown, "conversations": [{"from": "system", "value": "be short"}, *turns]},
        {"id": "long", "image": shown, "question": "is it red? " * 30, "answer": "yes"},
        {"id": "talk", "image": shown, "conversations": turns},
        {"id": "wordy", "image": shown, "question": "what is it?", "answer": "a red dog on the boat " * 20},
    ]
    (tmp_path / "odd.jsonl").write_bytes(jsonl(*odd))
    words = ["train", "align", "odd.jsonl", "--from", data / "opt", "-o", "out", "--batch-size", 2]
    done = warm(*words, "--dry-run", "--errors", "lost.jsonl", code=3)
    (plan,) = records(done.stdout)
    assert plan["samples"] == 3 and plan["steps"] == 2 and 0 < plan["trainable_parameters"] < plan["total_parameters"]
    said = done.stderr.decode()
    assert {row["id"] for row in records((tmp_path / "lost.jsonl").read_bytes())} == {"two", "none", "system", "long"}
    assert "has not one picture" in said and "has a system text" in said and "prompt does not fit" in said
    assert (
        "1 conversations have several turns" in said and "1 of 3 samples are longer than 64 tokens and were cut" in said
    )
    for flags, why in (
        (["--pack-length", 64], "--pack-length is not for a Q-Former"),
        (["--checkpointing"], "--checkpointing is not for a Q-Former"),
    ):
        assert why in warm(*words, *flags, code=2).stderr.decode()
    pairs = jsonl({"image": shown, "question": "red?", "chosen": "yes", "rejected": "no"})
    (tmp_path / "pairs.jsonl").write_bytes(pairs)
    refused = warm("train", "prefer", "pairs.jsonl", "--from", data / "opt", "-o", "out", "--batch-size", 1, code=2)
    assert "which prefer does not train" in refused.stderr.decode()
    assert not (tmp_path / "out").exists()
