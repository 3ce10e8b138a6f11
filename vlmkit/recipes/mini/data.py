"""The data that the vision-language model of `mini` learns from and is measured on, as records:

    python -m vlmkit.recipes.mini.data TRAIN.tar... --val DEV.tar --daquar QUESTIONS.jsonl -o DIR

Captions as they are, questions made from them by rule, easy-VQA out of its package (extra `recipe`), and DAQUAR with a
tenth of its pictures held out. The same command makes the same bytes. Counts go to standard error, one file a line.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from vlmkit.datasets.easy_vqa import easy_vqa
from vlmkit.errors import VlmkitError
from vlmkit.io.files import atomic_folder
from vlmkit.io.inputs import records_of
from vlmkit.io.records import Failed, Record, dumps, loads
from vlmkit.recipes.mini.caption_questions import questions
from vlmkit.train.data.mixture import held_out

DAQUAR_DEV = 0.1  # of its pictures


def write_data(train: list[Path], val: list[Path], daquar: Path, out: Path, limit: int | None = None) -> dict[str, str]:
    """Write the files to the new folder `out`; what each holds, in words. `limit`: so many pictures of each source.

    Raises VlmkitError, also for a row that cannot be read; then there is no folder.
    """
    captions, dev = (list(_some(_records(paths), limit)) for paths in (train, val))
    asked = list(_some(_records([daquar]), limit))
    aside = [held_out(Path(row["image"]).name, DAQUAR_DEV) for row in asked]
    files: dict[str, Iterable[Record]] = {
        "train-captions": captions,
        "train-questions": questions(captions),
        "easy-train": _some(easy_vqa("train"), limit),
        "daquar-train": (row for row, out in zip(asked, aside, strict=True) if not out),
        "flickr-dev-captions": dev,
        "flickr-dev-questions": questions(dev),
        "easy-test": _some(easy_vqa("test"), limit),
        "daquar-dev": (row for row, out in zip(asked, aside, strict=True) if out),
    }
    with atomic_folder(out) as made:
        return {name: _write(made / f"{name}.jsonl", rows) for name, rows in files.items()}


def rows(path: Path) -> Iterator[Record]:
    """What `write_data` wrote into one of its files."""
    with path.open("rb") as file:
        yield from map(loads, file)


def _records(paths: list[Path]) -> Iterator[Record]:
    for row in records_of([str(path) for path in paths]):
        if isinstance(row, Failed):
            raise VlmkitError(f"{row.id}: {row.error}", "mend or remove it")
        yield row


def _some(rows: Iterable[Record], limit: int | None) -> Iterator[Record]:
    """The rows about the first `limit` pictures."""
    pictures: set[str] = set()
    for row in rows:
        if limit is None or row["image"] in pictures or len(pictures) < limit:
            pictures.add(row["image"])
            yield row


def _write(path: Path, rows: Iterable[Record]) -> str:
    pictures: set[str] = set()
    kinds: Counter[str] = Counter()
    with path.open("wb") as file:
        for row in rows:
            file.write(dumps(row))
            pictures.add(row["image"])
            kinds[row.get("category", "rows")] += 1
    summary = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"{kinds.total()} rows about {len(pictures)} pictures: {summary}"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m vlmkit.recipes.mini.data", description="Write the data of mini.")
    parser.add_argument("train", nargs="+", type=Path, metavar="TRAIN", help="shards or records with captions")
    parser.add_argument("--val", nargs="+", type=Path, required=True, metavar="DEV", help="other ones, to measure on")
    parser.add_argument("--daquar", type=Path, required=True, metavar="FILE", help="records with questions and answers")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="new folder for the records")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures of each")
    a = parser.parse_args()
    try:
        for name, summary in write_data(a.train, a.val, a.daquar, a.out, a.limit).items():
            sys.stderr.write(f"{name}.jsonl: {summary}\n")
    except VlmkitError as error:
        sys.stderr.write(f"data: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
