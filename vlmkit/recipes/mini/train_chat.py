"""Make the chat model of `mini` from captioned pictures and questions:

    python -m vlmkit.recipes.mini.train_chat TRAIN.tar... --val DEV.tar --daquar QUESTIONS.jsonl -o DIR

1. Write the data.
2. Train as `vlmkit train instruct --vision mini` does, twice.
3. Train as `vlmkit train prefer` does on pairs of the model's own captions; average the weights before and after.
4. From there train students on pseudo-labels; average their weights and those that they began with.
5. Export, measure on held-out data with the right and with shuffled pictures, write DIR with a card.

The same command on the same machine makes the same bytes. Progress goes to standard error, one JSON object a line.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.io.files import atomic_folder, check_new_folder
from vlmkit.io.records import Record, dumps
from vlmkit.io.terminal import Failures
from vlmkit.models.embedders.base import silence_libraries
from vlmkit.recipes.mini.data import rows, write_data
from vlmkit.recipes.mini.export_chat import export_chat
from vlmkit.recipes.mini.measure import answers, measure
from vlmkit.recipes.mini.model_cards import chat_model_card
from vlmkit.recipes.mini.preference_pairs import caption_pairs
from vlmkit.recipes.mini.pseudo_labels import pseudo_label
from vlmkit.recipes.mini.tokenizer import language_model
from vlmkit.train.config import InstructConfig, PreferConfig
from vlmkit.train.vlm.run import train

WEIGHTS = "model.safetensors"
PIECES, WIDTH, LAYERS = 6000, 256, 6
# Instruction training, from nothing and then from there; the mixture says how often each file counts an epoch.
PHASES: tuple[dict[str, Any], ...] = (
    {
        "mixture": {"train-captions": 1, "train-questions": 0.25, "easy-train": 0.35, "daquar-train": 2},
        "epochs": 8,
        "lr": 1e-3,
        "augmentations": 2,
    },
    {
        "mixture": {"train-captions": 1, "train-questions": 0.1, "easy-train": 1.5, "daquar-train": 1},
        "epochs": 4,
        "lr": 5e-4,
        "augmentations": 4,
    },
)
TRAINING: dict[str, Any] = {
    "image_aspect": "crop",
    "cache_features": True,
    "batch_size": 32,
    "weight_decay": 0.05,
    "beta2": 0.98,
    "warmup": 0.05,
    "dropout": 0.15,
    "loss_weighting": "root",
    "label_smoothing": 0.1,
    "pack_length": 256,
    "log_every": 50,
}
# Then on pseudo-labels, and on its own captions, so that it keeps the form that it learned to prefer. The names in the
# dictionaries stand in the talk.json of finished models.
STUDENT_TRAINING: dict[str, Any] = {
    "mixture": {
        "daquar-taught": 1,
        "own-captions": 1,
        "daquar-train": 1,
        "easy-train": 0.2,
        "train-questions": 0.05,
    },
    "lr": 8e-4,
    "augmentations": 4,
    "dropout": 0.1,
    "label_smoothing": 0.0,
    "pack_length": 320,
}
PSEUDO_LABEL_SETS: tuple[dict[str, int], ...] = (
    {"each": 40, "crops": 2},
    {"each": 40, "crops": 2},
    {"each": 80, "crops": 0},
    {"each": 40, "crops": 2},
)
# Their average answers more than any of them; with the model that they began as among what is averaged, captions stay
# as good as its.
STUDENTS: tuple[dict[str, Any], ...] = (
    {"lessons": 0, "seed": 0, "epochs": 3},
    {"lessons": 1, "seed": 2, "epochs": 1.5},
    {"lessons": 2, "seed": 3, "epochs": 2, "dropout": 0.05},
    {"lessons": 3, "seed": 4, "epochs": 1.5},
    {"lessons": 0, "seed": 5, "epochs": 1.5},
)
PREFERRED = 0.75  # of the weights after preferring, the rest of those before: the best of 0, 0.6, 0.75 and 1 on dev
PREFERRING: dict[str, Any] = {"lr": 5e-5, "projector_lr": 5e-5, "warmup": 0.03, "beta": 0.1, "cache_features": True}


def make(
    tars: list[str],
    val: str,
    daquar: str,
    out: Path,
    *,
    limit: int | None,
    epochs: float | None,
    students: int | None,
    work: Path,
    seed: int = 0,
) -> None:
    """The recipe from end to end; intermediate results are in `work`, from which an interrupted run continues."""
    check_new_folder(out)

    def log(entry: dict[str, Any]) -> None:
        sys.stderr.write(json.dumps(entry) + "\n")
        sys.stderr.flush()

    data = work / "data"
    if not data.exists():
        log({"data": write_data([Path(tar) for tar in tars], [Path(val)], Path(daquar), data, limit)})
    times = {} if epochs is None else {"epochs": epochs}
    phases = [phase | times for phase in PHASES]
    student_settings = [STUDENT_TRAINING | student | times for student in STUDENTS[:students]]
    val = str(data / "flickr-dev-captions.jsonl")
    beginning = {"llm": str(language_model(work / "llm", texts(data), PIECES, WIDTH, LAYERS)), "vision": "mini"}
    with Failures() as failures:
        for number, phase in enumerate(phases, 1):
            config = _phase(phase, [data], work / f"trained-{number}", seed, beginning | {"val": val})
            trained = train(config, log, failures, note=lambda _: None, resume=True)
            beginning = {"start": str(trained)}
        pairs = _pairs(work / "pairs", trained, list(rows(data / "train-captions.jsonl")), seed)
        by_pairs = PreferConfig(data=[str(pairs)], out=work / "preferring", start=str(trained), seed=seed, **PREFERRING)
        preferring = train(by_pairs, log, failures, note=lambda _: None, resume=True)
        between = _averaged({trained: 1 - PREFERRED, preferring: PREFERRED}, work / "between")
        own = _own(work / "own", between, list(rows(data / "train-captions.jsonl")))
        models = [between]
        for number, settings_of in enumerate(student_settings):
            labelled = _pseudo_label_set(work, settings_of["lessons"], data, seed)
            student = work / f"student-{number}"
            config = _phase(settings_of, [labelled, own, data], student, seed, {"start": str(between)})
            models.append(train(config, log, failures, note=lambda _: None, resume=True))
        model = _averaged(dict.fromkeys(models, 1 / len(models)), work / "averaged")
    with atomic_folder(out) as made:
        export_chat(model, made)
        figures, calibration = measure(made, data)
        log(figures)
        settings = json.loads((made / "talk.json").read_text())
        recipe = {"phases": phases, "seed": seed, "preferring": PREFERRING, "preferred": PREFERRED}
        recipe |= {"lessons": PSEUDO_LABEL_SETS, "teaching": student_settings} | TRAINING
        settings |= {"figures": figures, "recipe": recipe, "confidence": calibration}
        (made / "talk.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        size = {"layers": LAYERS, "width": WIDTH, "pieces": PIECES}
        (made / "TALK_CARD.md").write_text(chat_model_card(settings, size))


def _phase(
    phase: dict[str, Any], folders: list[Path], out: Path, seed: int, beginning: dict[str, str]
) -> InstructConfig:
    """The mixture's files stand in one of `folders`."""
    settings = TRAINING | phase | beginning
    settings.pop("lessons", None)
    seed += settings.pop("seed", 0)
    data = [
        f"{weight}:{next(filter(Path.exists, (folder / f'{name}.jsonl' for folder in folders)))}"
        for name, weight in settings.pop("mixture").items()
    ]
    return InstructConfig(data=data, out=out, projector_lr=phase["lr"], seed=seed, **settings)


def _pairs(folder: Path, trained: Path, captioned: list[Record], seed: int) -> Path:
    """The pairs of captions by what was trained so far, in the folder with it, packed; made unless they are there."""
    if not folder.exists():
        with atomic_folder(folder) as made:
            export_chat(trained, made)
            (made / "pairs.jsonl").write_bytes(b"".join(map(dumps, caption_pairs(made, captioned, seed))))
    return folder / "pairs.jsonl"


def _own(folder: Path, model: Path, captioned: list[Record]) -> Path:
    """Captions by `model`, in the folder with it, packed; made unless they are there."""
    if not folder.exists():
        with atomic_folder(folder) as made:
            export_chat(model, made)
            said = answers(made, captioned, [""] * len(captioned), captions=True)
            own = ({"image": row["image"], "captions": [text]} for row, text in zip(captioned, said, strict=True))
            (made / "own-captions.jsonl").write_bytes(b"".join(map(dumps, own)))
    return folder


def _pseudo_label_set(work: Path, number: int, data: Path, seed: int) -> Path:
    """A folder with a set of pseudo-labels; made unless it exists."""
    folder = work / f"pseudo-labels-{number}"
    if not folder.exists():
        asked = list(rows(data / "daquar-train.jsonl"))
        with atomic_folder(folder) as made:
            labelled = pseudo_label(asked, work / f"crops-{number}", seed + number, **PSEUDO_LABEL_SETS[number])
            (made / "daquar-taught.jsonl").write_bytes(b"".join(map(dumps, labelled)))
    return folder


def _averaged(parts: dict[Path, float], out: Path) -> Path:
    """Models that began as the same, each weight the sum of their weights times what stands beside them.

    Wortsman and others (2022), Model soups, and Robust fine-tuning of zero-shot models.
    """
    import torch
    from safetensors.torch import load_file, save_file

    if not out.exists():
        with atomic_folder(out) as made:
            shutil.copytree(next(iter(parts)), made, ignore=shutil.ignore_patterns("checkpoints"), dirs_exist_ok=True)
            loaded = [(load_file(folder / WEIGHTS), part) for folder, part in parts.items()]
            averaged = {name: torch.stack([part * one[name] for one, part in loaded]).sum(0) for name in loaded[0][0]}
            save_file(averaged, made / WEIGHTS, {"format": "pt"})
    return out


def texts(data: Path) -> Iterator[str]:
    """All that is said in the training files."""
    for name in PHASES[0]["mixture"]:
        for row in rows(data / f"{name}.jsonl"):
            yield from row.get("captions") or [row["question"], *row["answers"]]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vlmkit.recipes.mini.train_chat", description="Make the chat model of mini."
    )
    parser.add_argument("data", nargs="+", metavar="TRAIN", help="shards with captions")
    parser.add_argument("--val", required=True, metavar="DEV", help="another one, to measure on")
    parser.add_argument("--daquar", required=True, metavar="FILE", help="DAQUAR's questions as records")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="new folder for the model")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder of intermediate results, to continue from")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures of each source")
    parser.add_argument("--epochs", type=float, metavar="N", help="times through in each phase; otherwise as for mini")
    parser.add_argument("--students", type=int, metavar="N", help="only the first N of them")
    a = parser.parse_args()
    silence_libraries()
    try:
        with tempfile.TemporaryDirectory(prefix="mini-talk-") as temporary:
            work = a.work or Path(temporary)
            work.mkdir(parents=True, exist_ok=True)
            less = {"limit": a.limit, "epochs": a.epochs, "students": a.students}
            make(a.data, a.val, a.daquar, a.out, **less, work=work)
    except VlmkitError as error:
        sys.stderr.write(f"train_chat: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
