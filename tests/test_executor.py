"""Pipelines: order, bounds, the end; and stages that travel to another process as names."""

import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers import picture

from vlmkit.embed import stages
from vlmkit.generate.pipeline import GenerateOptions
from vlmkit.generate.pipeline import stages as chat_stages
from vlmkit.generate.questions import to_caption
from vlmkit.io.executor import BatchStage, Stage, map_ordered
from vlmkit.io.inputs import Item, Reading, read_inputs
from vlmkit.io.records import Failed
from vlmkit.models.load import load_chat_model, load_embedder
from vlmkit.models.types import Sampling

pytestmark = pytest.mark.slow


@dataclass
class Double(Stage):
    workers: int = 4
    depth: int = 6

    def load(self) -> None:
        self._loaded = True

    def close(self) -> None:
        self._loaded = False

    def __call__(self, item: int) -> int | Failed:
        assert self._loaded
        time.sleep(0.002 * (item % 3))
        return Failed(str(item), None, "seven") if item == 7 else 2 * item


class Sums(BatchStage):
    def size(self) -> int:
        return 4

    def __call__(self, items: list[int]) -> list[tuple[int, int]]:
        return [(item, len(items)) for item in items]


def test_results_come_in_order_and_failures_pass_by() -> None:
    found = list(map_ordered([Double(), Double(), Sums()], range(10)))
    assert [entry if isinstance(entry, Failed) else entry[0] for entry in found[:7]] == [4 * n for n in range(7)]
    assert isinstance(found[7], Failed) and found[7].id == "7"
    assert [entry[1] for entry in found[:4]] == [4] * 4 and found[6][1] == 3, "a batch without the failure"


def test_only_so_many_wait_and_the_end_stops_what_is_left() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken = number
            yield number % 7

    stage = Double()
    results = map_ordered([stage], items())
    next(results)
    assert taken <= 6
    results.close()  # type: ignore[attr-defined]
    assert not stage._loaded and taken <= 6


def test_an_error_of_a_stage_ends_the_pipeline() -> None:
    with pytest.raises(TypeError):
        list(map_ordered([Double()], [1, None, 2]))


def test_pickled_stages_embed_the_same(tmp_path: Path) -> None:
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    (tmp_path / "d.png").write_bytes(b"no picture")
    items = list(read_inputs([str(tmp_path)]))
    pipeline = stages(load_embedder("mini"), False, False, 2, 2, False)
    data = pickle.dumps((pipeline, items))
    assert len(data) < 5000, "the model travels by its name"
    again, same_items = pickle.loads(data)
    expected, found = (list(map_ordered(some, rows)) for some, rows in ((pipeline, items), (again, same_items)))
    assert len(expected) == 4 and isinstance(found[3], Failed)
    for one, other in zip(expected[:3], found[:3], strict=True):
        assert one[0] == other[0] and np.array_equal(one[1], other[1])


def test_pickled_stages_run_in_another_process(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    sample = next(iter(to_caption([str(tmp_path / "a.png")], Reading()).items))
    model = load_chat_model("mini")
    pipeline = chat_stages(model, Sampling(8), GenerateOptions(prompt=model.captions["normal"].prompt), 1, 1, False)
    ((record, reply),) = map_ordered(pipeline, [sample])
    code = (
        "import pickle, sys\n"
        "from vlmkit.io.executor import map_ordered\n"
        "stages, items = pickle.load(sys.stdin.buffer)\n"
        "((record, reply),) = map_ordered(stages, items)\n"
        "print(record['id'], reply.answer.text, sep='|', end='')\n"
    )
    data = pickle.dumps((pipeline, [sample]))
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout.decode() == f"{record['id']}|{reply.answer.text}"
    assert isinstance(sample.record, dict) and not isinstance(sample, Item)
