"""What `import vlmkit` offers, called as people call it who did not read the manual."""

from pathlib import Path

import pytest

import vlmkit


@pytest.fixture
def index(vlmkit, photo_rows: bytes, tmp_path: Path):
    vlmkit("index", "-i", "./photos.index", stdin=photo_rows)
    from vlmkit.api import Index

    with Index.open(tmp_path / "photos.index") as opened:
        yield opened


@pytest.mark.parametrize("function", ["embed_images", "embed_texts", "caption_images"])
def test_one_name_is_not_taken_for_its_letters(function: str) -> None:
    with pytest.raises(vlmkit.VlmkitError, match=r"'a\.jpg' is one, and a list is needed"):
        getattr(vlmkit, function)("a.jpg", "mini")


def test_a_search_for_nothing_is_refused(index) -> None:
    with pytest.raises(vlmkit.VlmkitError, match="nothing to look for"):
        index.search(k=3)


def test_conditions_are_one_or_several(index) -> None:
    alone = index.search("a cat", where="width>=512")
    assert alone and alone == index.search("a cat", where=["width>=512"])


def test_an_unknown_field_is_named(index) -> None:
    with pytest.raises(vlmkit.VlmkitError, match=r"wdith.*width"):
        index.search("a cat", where="wdith>3")


def test_a_vector_of_another_length_is_refused(index) -> None:
    with pytest.raises(vlmkit.VlmkitError, match="vectors of 384 numbers"):
        index.search_vector([1.0, 0.0])
