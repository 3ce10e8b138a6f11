"""How well pictures are read: the made set of words_set.py, by vlmkit and by rapidocr's own documented call.

    python tests/benchmarks/ocr.py [FOLDER]

Character and word error rates (Levenshtein distance over the length of what is written, lines and spaces included),
pictures read without any error, pictures without words in which some were read, and seconds of one core a picture.
Then the spaces that are lost in lines which are otherwise right, of twelve fonts in six sizes.
"""

import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rapidfuzz.distance import Levenshtein
from rapidocr import RapidOCR
from words_set import MONO, PLAIN, make, written

from vlmkit.models.load import load_chat_model
from vlmkit.models.ocr.base import text_of
from vlmkit.models.types import Hardware

PHRASES = (
    "Invoice No. 2026-117|The quick brown fox jumps over|Total due: 1,249.50 EUR|Please pay within 14 days. Thank you!|"
    "Order no. 17 of 3 June 2026, p. 5|Mr. J. R. Smith, Dr. A. Lee|No. 42 - Rue de l'Eglise 7, Paris|"
    "Tel. +49 176 4419, Fax 030 / 22 11|I am at 5 p.m. in it. If I will, I fill it|vol. III, ch. 12: The Mill, p. 117"
)
Read = Callable[[Image.Image], str]


def readers() -> dict[str, Read]:
    ours, theirs = load_chat_model("rapidocr", Hardware(threads=1)), RapidOCR()
    logging.getLogger("RapidOCR").disabled = True

    def documented(picture: Image.Image) -> str:
        return "\n".join(theirs(np.asarray(picture)[:, :, ::-1]).txts or ())

    return {"vlmkit": lambda picture: text_of(ours.read(picture)), "RapidOCR()": documented}  # type: ignore[attr-defined]


def measured(read: Read, folder: Path) -> str:
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    errors, lengths, right, wrong = np.zeros(2), np.zeros(2), 0, 0
    start = time.process_time()
    for row in rows:
        with Image.open(folder / row["image"]) as picture:
            found, there = read(picture.convert("RGB")), "\n".join(row["lines"])
        if there:
            errors += Levenshtein.distance(found, there), Levenshtein.distance(found.split(), there.split())
            lengths += len(there), len(there.split())
            right += found == there
        else:
            wrong += bool(found)
    seconds = (time.process_time() - start) / len(rows)
    count = sum(bool(row["lines"]) for row in rows)
    rates = " | ".join(f"{rate:.2%}" for rate in errors / lengths)
    return f"{rates} | {right} of {count} | {wrong} of {len(rows) - count} | {seconds:.2f}"


def lost_spaces(read: Read) -> str:
    dice, spaces, lost = random.Random(1), 0, 0
    for font in sorted({*PLAIN, *MONO}):
        for size in (10, 12, 14, 18, 24, 36):
            lines = dice.sample(PHRASES.split("|"), 5)
            page = written(lines, font, size, dice.choice((0, 0, 0, 2, -3)), ("black", "white"))
            for line, found in zip(lines, read(page).split("\n"), strict=False):
                if line.replace(" ", "") == found.replace(" ", ""):
                    spaces += line.count(" ")
                    lost += max(0, line.count(" ") - found.count(" "))
    return f"{lost} of {spaces:,}"


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        if not (folder / "records.jsonl").exists():
            make(folder)
        print("| | characters | words | pictures read right | words where none are | seconds of a core | spaces lost |")
        print("|---|---|---|---|---|---|---|")
        for name, read in readers().items():
            print(f"| `{name}` | {measured(read, folder)} | {lost_spaces(read)} |", flush=True)


if __name__ == "__main__":
    main()
