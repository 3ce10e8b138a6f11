"""easy-VQA from its package."""

import os
from pathlib import Path

import pytest

from vlmkit.datasets.easy_vqa import easy_vqa
from vlmkit.errors import VlmkitError

pytestmark = pytest.mark.slow


def test_easy_vqa() -> None:
    for split, questions_in, pictures_in in (("train", 38575, 4000), ("test", 9673, 1000)):
        rows = list(easy_vqa(split))
        assert len(rows) == questions_in
        assert len({row["id"] for row in rows}) == questions_in
        pictures = {row["image"] for row in rows}
        assert len(pictures) == pictures_in
        assert all(map(os.path.isfile, pictures))
        assert {row["category"] for row in rows} == {"color", "shape", "yes-no"}
        assert {row["answers"][0] for row in rows if row["category"] == "shape"} == {"circle", "rectangle", "triangle"}


def test_easy_vqa_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmkit.datasets.easy_vqa.find_spec", lambda name: None)
    with pytest.raises(VlmkitError, match="pip install easy-vqa"):
        next(easy_vqa("train"))
