"""Recall@5 of search by words, by meaning and by both, on the made set of `words_set.py`, and with names alone.

    python tests/benchmarks/words.py [--ocr]

The index gets what is written in the pictures in `ocr`: as it was rendered, or with --ocr as `vlmkit embed --ocr` reads
it. Recall@5 is the share of the first five that are relevant, of as many as there can be. Beside it Flickr8k's
validation pictures, of which the index knows nothing but their names, which are numbers: recall@10 of a caption.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean

import words_set

VLMKIT = str(Path(sys.executable).with_name("vlmkit"))
HOWS = ("words", "meaning", "both")


def run(*words: object, given: bytes = b"") -> list[dict]:
    done = subprocess.run([VLMKIT, *map(str, words)], input=given, stdout=subprocess.PIPE, check=False)
    assert done.returncode in (0, 1), words
    return [json.loads(line) for line in done.stdout.splitlines()]


def lines_of(records: list[dict]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def ranked(index: Path, queries: list[str], how: str, count: int) -> dict[str, list[str]]:
    """The names of the first `count` pictures by query."""
    found: dict[str, list[str]] = defaultdict(list)
    rows = [{"id": query, "text": query} for query in queries]
    for hit in run("search", "-i", index, "--queries", "-", "--by", how, "-k", count, given=lines_of(rows)):
        found[hit["query"]].append(hit["image"].rpartition("/")[2])
    return found


def made_set(folder: Path, *, ocr: bool) -> None:
    made = {one.name: one for one in words_set.make(folder / "set")}
    records = run("embed", folder / "set", *(["--ocr"] if ocr else []))
    for record in records:
        name = record["image"].rpartition("/")[2]
        if not ocr and made[name].lines:
            record["ocr"] = "\n".join(made[name].lines)
    run("index", "-i", folder / "made", given=lines_of(records))
    queries = [json.loads(line) for line in (folder / "set/queries.jsonl").read_text().splitlines()]
    for how in HOWS:
        recalls = defaultdict(list)
        found = ranked(folder / "made", [query["query"] for query in queries], how, 5)
        for query in queries:
            relevant = query["relevant"]
            share = len(set(found[query["query"]]) & set(relevant)) / min(5, len(relevant))
            recalls[query["by"]].append(share)
            recalls["all"].append(share)
        told = ", ".join(f"{kind} {mean(shares):.3f} ({len(shares)})" for kind, shares in recalls.items())
        print(f"by {how}: recall@5 of queries for {told}", flush=True)


def flickr(folder: Path, shared: Path) -> None:
    records = run("embed", shared / "data/flickr8k/dev-000.tar")
    bare = [{name: value for name, value in record.items() if name != "captions"} for record in records]
    run("index", "-i", folder / "flickr", given=lines_of(bare))
    truth = {caption: record["image"].rpartition("/")[2] for record in records for caption in record["captions"]}
    for how in ("meaning", "both"):
        found = ranked(folder / "flickr", list(truth), how, 10)
        recall = mean(name in found[caption] for caption, name in truth.items())
        print(f"Flickr8k dev by {how}: recall@10 {recall:.4f} ({len(truth)} captions, {len(records)} pictures)")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        made_set(Path(name), ocr="--ocr" in sys.argv)
        if shared := os.environ.get("VLMKIT_SHARED"):
            flickr(Path(name), Path(shared))


if __name__ == "__main__":
    main()
