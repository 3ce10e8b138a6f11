#!/usr/bin/env bash
# How well mini describes, finds and answers, scored by `vlmkit eval`: mini_talk.sh SHARED
#
# SHARED/data/flickr8k/dev-000.tar holds 1,000 captioned pictures; easy-VQA's test questions come from its package
# (extra `recipe`). One JSON object a figure.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

vlmkit caption "$1/data/flickr8k/dev-000.tar" > "$work/captions.jsonl"
vlmkit eval caption "$work/captions.jsonl" --json
vlmkit eval retrieval "$work/captions.jsonl" --json

python - > "$work/questions.jsonl" << 'END'
import sys
from vlmkit.datasets.easy_vqa import easy_vqa
from vlmkit.records import dumps
sys.stdout.buffer.writelines(map(dumps, easy_vqa("test")))
END
vlmkit ask < "$work/questions.jsonl" | vlmkit eval vqa --by category --json
