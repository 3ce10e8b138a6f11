#!/usr/bin/env bash
# How well mini describes, finds and answers, scored by `vlmkit eval`: mini_talk.sh SHARED
#
# SHARED/data/flickr8k/dev-000.tar holds 1,000 captioned pictures, SHARED/data/daquar DAQUAR's questions, of which those
# are asked that the recipe of mini holds out; easy-VQA's test questions come from its package (extra `recipe`). Questions
# are asked with their pictures and then with those of other questions; DAQUAR's, which have none, with question marks,
# too. One JSON object a figure.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

vlmkit caption "$1/data/flickr8k/dev-000.tar" > "$work/captions.jsonl"
vlmkit eval caption "$work/captions.jsonl" --json
vlmkit eval retrieval "$work/captions.jsonl" --json

python - "$1/data/daquar/questions.jsonl" "$work" << 'END'
import sys
from pathlib import Path
import numpy as np
from vlmkit.datasets.easy_vqa import easy_vqa
from vlmkit.io.inputs import records_of
from vlmkit.io.records import dumps
from vlmkit.recipes.mini.data import DAQUAR_DEV
from vlmkit.train.data.mixture import held_out

daquar = [row for row in records_of([sys.argv[1]]) if held_out(Path(row["image"]).name, DAQUAR_DEV)]
for name, rows in (("easy-vqa", list(easy_vqa("test"))), ("daquar", daquar)):
    shuffled = [rows[i]["image"] for i in np.random.default_rng(0).permutation(len(rows))]
    turned = [row | {"image": image} for row, image in zip(rows, shuffled, strict=True)]
    for kind, some in (("", rows), ("-shuffled", turned)):
        Path(sys.argv[2], f"{name}{kind}.jsonl").write_bytes(b"".join(map(dumps, some)))
marked = (row | {"question": row["question"] + "?"} for row in daquar)
Path(sys.argv[2], "daquar-marked.jsonl").write_bytes(b"".join(map(dumps, marked)))
END
for name in easy-vqa easy-vqa-shuffled daquar daquar-shuffled daquar-marked; do
    echo "$name" >&2
    vlmkit ask --max-tokens 8 < "$work/$name.jsonl" | vlmkit eval vqa --by category --json
done
