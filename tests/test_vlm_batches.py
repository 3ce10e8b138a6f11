"""Parts of micro-batches: within their bounds, all samples once and in order, as many for each process."""

from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import records
from hypothesis import given
from hypothesis import strategies as st
from vlm_data import line, write_data
from warm import Start

from vlmkit.train.data.mixture import Ragged
from vlmkit.train.vlm.batches import Bounds, ByLength, Order, OrderedSampler, SampleRef

LENGTH = 100
segments = st.lists(st.tuples(st.integers(1, 120), st.integers(1, 3)), min_size=1, max_size=4)
drawn = st.lists(st.tuples(segments, st.integers(0, 2)), min_size=1, max_size=12)


def groups_of(data: list[tuple[list[tuple[int, int]], int]]) -> Any:
    lengths = np.array([len(some) for some, _ in data])
    flat = np.array(list(chain.from_iterable(some for some, _ in data)))
    sizes = {"segments": Ragged.of(lengths, flat[:, 0]), "sizes": Ragged.of(lengths, flat[:, 1])}
    pictures = np.array([pictures for _, pictures in data])
    return SimpleNamespace(**sizes, pictures=pictures, packer=SimpleNamespace(length=LENGTH))


@given(drawn, st.integers(1, 400), st.integers(1, 5))
def test_parts_are_within_bounds_and_leave_nothing_out(data: list, tokens: int, pictures: int) -> None:
    groups = groups_of(data)
    parts = Bounds(tokens, pictures).parts([SampleRef(i, 0) for i in range(len(data))], groups)
    seen = [(ref.group, sample) for part in parts for ref in part for sample in range(ref.start, ref.stop or 0)]
    assert seen == [(i, n) for i, (some, _) in enumerate(data) for n in range(sum(count for _, count in some))]
    for part in parts:
        rows: list[int] = []
        inside = 0
        for ref in part:
            start = 0
            for size, count in data[ref.group][0]:
                if ref.start <= start < (ref.stop or 0):
                    inside += 1
                    row = next((r for r, filled in enumerate(rows) if filled + size <= LENGTH), None)
                    rows = [*rows, size] if row is None else [f + size * (r == row) for r, f in enumerate(rows)]
                start += count
        shown = sum(data[ref.group][1] for ref in part)
        assert inside == 1 or (len(rows) * max(rows) <= tokens and shown <= max(pictures, data[part[0].group][1]))


@given(drawn, st.integers(1, 3), st.integers(1, 4))
def test_processes_get_as_many_parts(data: list, world: int, size: int) -> None:
    groups = groups_of(data)
    refs = Order(lambda epoch: np.random.default_rng(epoch).permutation(len(data)), 2 * world * size)
    bounds = Bounds(150, 3)
    took = [
        list(OrderedSampler(refs, size, rank, world, lambda some: bounds.parts(some, groups))) for rank in range(world)
    ]
    for step in range(2):
        assert len({len(own[step]) for own in took}) == 1
        whole = {ref[:2] for own in took for part in own[step] for ref in part if ref.counts}
        assert whole == {ref[:2] for ref in refs[step * world * size : (step + 1) * world * size]}


@given(drawn, st.integers(1, 5))
def test_a_step_in_order_of_length_is_the_same_step(data: list, step: int) -> None:
    groups = groups_of(data)
    refs = Order(lambda epoch: np.random.default_rng(epoch).permutation(len(data)), 4 * step)
    by_length = ByLength(refs, step, groups)
    assert len(by_length) == len(refs)
    for start in range(0, len(refs), step):
        some = by_length[start : start + step]
        assert sorted(some) == sorted(refs[start : start + step])
        lengths = [max(groups.segments[ref.group]) for ref in some]
        assert lengths == sorted(lengths)


def test_an_order_goes_on_over_epochs() -> None:
    refs = Order(lambda epoch: np.arange(epoch % 3), 7)
    assert [tuple(ref[:2]) for ref in refs] == [(0, 1), (0, 2), (1, 2), (0, 4), (0, 5), (1, 5), (0, 7)]
    assert refs[6] == SampleRef(0, 7) and refs[2:4] == [SampleRef(1, 2), SampleRef(0, 4)]


@pytest.mark.slow
def test_parts_change_nothing_but_rounding(start: Start, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    flags = [("--max-tokens-per-batch", "60"), ("--max-pictures-per-batch", "2"), ("--pack-length", "50"), ()]
    runs = [
        start(tmp_path / f"{i}", *line(data, "instruct", "mixed", "out", "--val", "0.3", *some, towers=False))
        for i, some in enumerate(flags)
    ]
    logs = [records(run.done().stdout) for run in runs]
    for log in logs[:3]:
        for name in ("loss", "val_loss", "grad_norm"):
            found = [entry[name] for entry in log if name in entry]
            assert found == pytest.approx([entry[name] for entry in logs[3] if name in entry], rel=1e-4)
    assert all(0 < entry["packing"] <= 1 for log in logs for entry in log if "loss" in entry)
