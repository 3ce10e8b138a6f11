"""Settings of align, instruct and prefer: where they come from, what a run would cost, what is refused."""

import json
from pathlib import Path

import pytest
from helpers import records
from safetensors.torch import load_file
from vlm_data import line, write_data, write_towers
from warm import Start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_towers(write_data(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def aligned(data: Path, start: Start) -> Path:
    start(data, *line(data, "align", "captions", "aligned")).done()
    return data / "aligned"


def test_settings_from_a_file_and_flags_over_them(data: Path, start: Start, tmp_path: Path) -> None:
    mine = f'preset = "debug"\ndata = ["{data}/captions.jsonl"]\nsteps = 2\nbatch-size = 4\nseed = 3\n'
    (tmp_path / "mine.toml").write_text(mine + "projector_lr = 0.5\nval = 0.25\n")
    flags = "-o", "a", "--steps", "3", "--seed", "0"
    log = records(start(tmp_path, "train", "align", "--config", "mine.toml", *flags).done().stdout)
    assert max(entry["step"] for entry in log) == 3 and log[0]["lr"] == 0.5 and any("val_loss" in e for e in log)
    again = start(tmp_path, "train", "align", "--config", "a/train.toml", "-o", "b").done()
    keep = ("step", "loss", "val_loss", "lr", "grad_norm")
    assert [{k: e[k] for k in keep if k in e} for e in records(again.stdout)] == [
        {k: e[k] for k in keep if k in e} for e in log
    ]
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    settled = (tmp_path / "a/train.toml").read_text()
    assert all(line in settled for line in ("steps = 3", "seed = 0", "batch-size = 4", "projector-lr = 0.5"))


def test_dry_run_says_what_would_be_trained(data: Path, aligned: Path, start: Start, tmp_path: Path) -> None:
    words = line(data, "align", "captions", "out", "--dry-run")
    (plan,) = records(start(tmp_path, *words).done().stdout)
    unnamed = [word for word in words if word not in ("-o", "out")]
    assert start(tmp_path, *unnamed).done().stdout.startswith(b'{"stage":"align"'), "it needs no --output"
    sizes = {name: value.numel() for name, value in load_file(aligned / "model.safetensors").items()}
    projector = sum(size for name, size in sizes.items() if "projector" in name)
    assert plan["trainable_parameters"] == projector and plan["total_parameters"] == sum(sizes.values())
    assert plan["samples"] == 48 and plan["steps"] == 3 and plan["tokens_per_step"] > 8 * 16
    assert plan["memory_gb"] > 0 and plan["seconds"] > 0
    assert plan["loader_rows_per_s"] == pytest.approx(2 * plan["loader_pictures_per_s"], rel=0.5) and plan["workers"]
    flags = "--from", aligned, "--lora", "4", "--dry-run"
    (plan,) = records(start(tmp_path, *line(data, "instruct", "mixed", "out", *flags, towers=False)).done().stdout)
    wide, inner, kv = 32, 64, 16
    lora = 2 * 4 * ((wide + wide) * 2 + (wide + kv) * 2 + (wide + inner) * 3)  # layers x rank x (in + out)
    assert plan["trainable_parameters"] == projector + lora
    assert not (tmp_path / "out").exists()


def test_samples_that_do_not_fit_are_named_and_left_out(data: Path, start: Start, tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text("max-length = 60\n")
    short = "--config", tmp_path / "short.toml", "--errors", "lost.jsonl"
    words = [word for word in line(data, "instruct", "mixed", "out", *short) if word != "-q"]
    done = start(tmp_path, *words).done(3)
    lost = [json.loads(row) for row in (tmp_path / "lost.jsonl").read_text().splitlines()]
    assert {row["id"] for row in lost} >= {"pair"} and all("do not fit into max-length" in row["error"] for row in lost)
    count = f"(%d samples), 0 dropped: {len(lost)} samples whose pictures or reply do not fit" % (26 - len(lost))
    assert count in done.stderr.decode() and len(lost) < 26
    (tmp_path / "short.toml").write_text("max-length = 8\n")
    done = start(tmp_path, *line(data, "align", "captions", "none", "--config", tmp_path / "short.toml")).done(2)
    reason = "pictures or reply do not fit into max-length"
    remedy = "raise --max-length, or change the data"
    assert done.stderr.decode().splitlines()[-1] == f"vlmkit: no sample can be trained on: {reason}: {remedy}"


def test_replies_that_are_cut_are_counted(data: Path, start: Start, tmp_path: Path) -> None:
    words = line(data, "align", "captions", "out", "--dry-run")
    assert start(tmp_path, *words).done().stderr == b""
    done = start(tmp_path, *words, "--max-length", "28").done(3)  # 16 of the picture, one a letter and the end
    cut = sum(
        len(caption) > 11 for row in records((data / "captions.jsonl").read_bytes()) for caption in row["captions"]
    )
    said = f"vlmkit: {cut} of 48 samples are longer than 28 tokens and were cut: raise --max-length\n"
    assert 0 < cut < 48 and done.stderr.decode() == said


def test_bad_input_is_one_line_and_leaves_no_folder(data: Path, aligned: Path, start: Start, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text('{"id": "a", "question": "what?"}\n')
    (tmp_path / "moved.jsonl").write_text('{"image": "gone.jpg", "question": "what?", "answers": ["a"]}\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "llava.toml").write_text("patch = 3\n")
    (tmp_path / "odd.toml").write_text('loss-weighting = "words"\n')
    (tmp_path / "blind.toml").write_text("augmentations = 0\n")
    (tmp_path / "of-align.toml").write_text('stage = "align"\n')

    def caption(*flags: object) -> list[str]:
        return line(data, "align", "captions", "out", *flags)

    def ask(*flags: object) -> list[str]:
        return line(data, "instruct", "questions", "out", *flags, towers="--from" not in flags)

    cases = {
        "unknown preset nonsense: use debug, small, full": caption("--preset", "nonsense"),
        "the language model has no chat template: name a chat": ask("--llm", data / "mute"),
        f"{aligned} has the connector mlp, not linear: leave": ask("--from", aligned, "--connector", "linear"),
        f"{aligned} brings its own towers: leave --llm out": ask("--from", aligned, "--llm", data / "llama"),
        f"{tmp_path}/empty: Unrecognized model in {tmp_path}/empty": ask("--from", tmp_path / "empty"),
        f"{data}/llama: a llama model, not one of the LLaVA form": ask("--from", data / "llama"),
        "nowhere is not a folder: name one that vlmkit train made": ask("--from", "nowhere"),
        f"{data}/llama: llama is no CLIP or SigLIP tower": caption("--vision", data / "llama"),
        "unknown connector glue: use mlp, linear": caption("--connector", "glue"),
        "4-bit weights cannot be trained themselves: add --lora": ask("--quantize", "4bit", "--device", "cpu"),
        "--quantize 8bit is unknown: use 4bit": ask("--quantize", "8bit"),
        "--fsdp requires torchrun": caption("--fsdp", "--device", "cpu"),
        "--lora is not for align: leave it out, it is for instruct, prefer": caption("--lora", "4"),
        "--report-to paper is unknown: use wandb, tensorboard": caption("--report-to", "paper"),
        "8 pictures cannot be divided into 3 equal parts": caption("--accumulate", "3"),
        "llava.toml: unknown setting patch: use the names": caption("--config", tmp_path / "llava.toml"),
        "blind.toml: augmentations 0 is out of range: give at least 1": caption("--config", tmp_path / "blind.toml"),
        "odd.toml: loss-weighting words is unknown: use tokens, root, replies": ask("--config", tmp_path / "odd.toml"),
        "of-align.toml is for align, not for instruct": ask("--config", tmp_path / "of-align.toml"),
        "give records with captions, a question and answers": [*ask()[:2], str(tmp_path / "empty.jsonl"), *ask()[3:]],
        "give records with image, question, chosen and rejected": [
            *("train", "prefer", str(data / "questions.jsonl"), "-o", "out", "--from", str(aligned), "-q")
        ],
        "name the folder of the pictures with --images": [*ask()[:2], str(tmp_path / "moved.jsonl"), *ask()[3:]],
        "missing.jsonl": [*ask()[:2], "missing.jsonl", *ask()[3:]],
        "DATA is missing": [*ask()[:2], *ask()[3:]],
        "--output is missing": ["train", "align", str(data / "captions.jsonl"), "--preset", "debug"],
        "--vision is missing": ["train", "align", str(data / "captions.jsonl"), "-o", "out", "-q"],
        "nowhere does not exist: make that folder first": [*ask()[:4], "nowhere/out", *ask()[5:]],
        "validation fraction 2.0 is not between 0 and 1": caption("--val", "2"),
        "--lr -1 is out of range: give at least 0": ask("--lr", "-1"),
        "--projector-lr nan is out of range: give at least 0": ask("--projector-lr", "nan"),
        "--epochs 0 is out of range: give more than 0": caption("--epochs", "0"),
        "--early-stop requires validation: give --val": caption("--early-stop", "2"),
    }  # fmt: skip
    for expected, words in cases.items():
        done = start(tmp_path, *words).done(2)
        *_, said = done.stderr.decode().splitlines()
        assert said.startswith("vlmkit: ") and expected in said and said.count(": ") >= 2, said
        assert done.stdout == b"" and not (tmp_path / "out").exists()
