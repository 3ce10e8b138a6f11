"""--via: embed, search and classify by the model of a running service."""

from pathlib import Path

import numpy as np
import pytest
from helpers import picture, records, vector
from serving import Served


@pytest.fixture
def via(served: Served, environment: dict[str, str]) -> str:
    return served.url


def test_vectors_are_those_made_here(via: str, vlmkit, photos: Path, photo_rows: bytes) -> None:
    assert vlmkit("embed", photos, "--via", via).stdout == photo_rows
    texts = b"a red car\ntwo dogs\n"
    assert vlmkit("embed", "--text", "--via", via, stdin=texts).stdout == vlmkit("embed", "--text", stdin=texts).stdout


def test_a_large_picture_is_sent_smaller(via: str, vlmkit, tmp_path: Path) -> None:
    large = picture(tmp_path / "large.png", "red", (4000, 3000))
    (here,), (there,) = (records(vlmkit("embed", large, *more).stdout) for more in ([], ["--via", via]))
    assert float(vector(here) @ vector(there)) > 0.999 and here["width"] == there["width"] == 4000


def test_search_and_classify(via: str, vlmkit, photos: Path, photo_rows: bytes, environment: dict[str, str]) -> None:
    vlmkit("index", stdin=photo_rows)
    query = ["search", "a cup of coffee", "--image", photos / "coffee.png", "-k", 3]
    label = ["classify", photos, "--labels", "cat,coffee,rocket"]
    here = [records(vlmkit(*command).stdout) for command in (query, label)]
    environment["VLMKIT_SERVER"] = via
    there = [records(vlmkit(*command).stdout) for command in (query, label)]
    for mine, theirs in zip(here[0] + here[1], there[0] + there[1], strict=True):
        assert mine["id"] == theirs["id"] and mine.get("label") == theirs.get("label")
        assert np.isclose(mine.get("score", 0), theirs.get("score", 0), atol=1e-5)


def test_what_the_service_says_is_told(via: str, vlmkit) -> None:
    assert "кошка" in vlmkit("embed", "--text", "--via", via, stdin="кошка".encode()).stderr.decode()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--via", "localhost:8000"], "http://HOST:PORT"),
        (["--via", "http://127.0.0.1:9"], "start it with vlmkit serve"),
        (["-m", "other", "--via", "URL"], "use one of mini"),
        (["--precision", "int8", "--via", "URL"], "excludes"),
    ],
)
def test_a_service_that_cannot_be_used(via: str, vlmkit, words: list[str], told: str) -> None:
    said = vlmkit("embed", "--text", *[via if word == "URL" else word for word in words], code=2, stdin=b"a").stderr
    assert told in said.decode() and said.count(b"\n") == 1
