#!/usr/bin/env bash
# SmolLM2-135M learns to see easy-VQA's drawings with the image tower of mini: smol_easy_vqa.sh LLM OUT [PICTURES]
#
# LLM is what `vlmkit download smollm2-135m` gives (extra `recipe` for easy-VQA). First the projector alone, on captions
# made of the answers ("a red triangle"), then all of the language model, on the questions about the first PICTURES
# drawings (800 by default). Scored on test questions about other drawings, with the right pictures and with shuffled
# ones. One JSON object a line.
set -euo pipefail
llm=$1 out=$2
mkdir -p "$out"

python - "$out" "${3:-800}" << 'END'
import random
import sys
from itertools import groupby
from pathlib import Path
from vlmkit.datasets.easy_vqa import easy_vqa
from vlmkit.records import dumps

out, pictures = Path(sys.argv[1]), int(sys.argv[2])
groups = [list(rows) for _, rows in groupby(easy_vqa("train"), key=lambda row: row["image"])]
with (out / "captions.jsonl").open("wb") as file:
    for rows in groups:
        facts = {row["category"]: row["answers"][0] for row in rows}
        if {"color", "shape"} <= set(facts):
            file.write(dumps({"image": rows[0]["image"], "captions": [f"a {facts['color']} {facts['shape']}"]}))
with (out / "questions.jsonl").open("wb") as file:
    file.writelines(dumps(row) for rows in groups[:pictures] for row in rows)
test = list(easy_vqa("test"))[:2000]
shown = [row["image"] for row in test]
random.Random(0).shuffle(shown)
for name, seen in (("test", [row["image"] for row in test]), ("shuffled", shown)):
    with (out / f"{name}.jsonl").open("wb") as file:
        file.writelines(dumps(row | {"image": image}) for row, image in zip(test, seen, strict=True))
END

printf 'cache-features = true\npack-length = 256\nlog-every = 10\n' > "$out/settings.toml"
vlmkit train align "$out/captions.jsonl" --vision mini --llm "$llm" --config "$out/settings.toml" --batch-size 16 \
    -o "$out/aligned"
vlmkit train instruct "$out/questions.jsonl" --from "$out/aligned" --config "$out/settings.toml" --batch-size 16 \
    --lr 1e-4 -o "$out/assistant"
for name in test shuffled; do
    vlmkit ask -m "$out/assistant" --max-tokens 4 < "$out/$name.jsonl" > "$out/$name-answers.jsonl"
    vlmkit eval vqa "$out/$name-answers.jsonl" --by category --json
done
