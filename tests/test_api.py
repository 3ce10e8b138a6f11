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


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: vlmkit.embed_images([3]), r"a path is 3, of the type int: give a string or a path object"),
        (lambda: vlmkit.embed_images(None), "the list is None"),
        (lambda: vlmkit.embed_images(["a.jpg"], 3), "model is 3, of the type int: give a name, or what load_embedder"),
        (lambda: vlmkit.embed_texts(["a", None]), "texts is None"),
        (lambda: vlmkit.embed_texts(["a"], batch_size=-1), "batch_size is -1"),
        (lambda: vlmkit.caption_images(["a.jpg"], length="shrt"), "length is 'shrt': give one of short, normal, long"),
        (lambda: vlmkit.caption_images(["a.jpg"], max_tokens=0), "max_tokens is 0: give a number from 1"),
        (lambda: vlmkit.ask_images(["a.jpg"], ["red?", "blue?"]), "question is .*, of the type list"),
        (lambda: vlmkit.ask_images(["a.jpg"], " "), "the question is empty"),
        (lambda: vlmkit.ask_images(["a.jpg"], "red?", sampling=5), r"sampling is 5.*Sampling\(max_tokens"),
        (lambda: vlmkit.ask_images(["a.jpg"], "red?", vlmkit.load_embedder()), "model is .*what load_chat_model"),
        (lambda: vlmkit.ask_images([], "red?", together=True), "no pictures to ask about"),
        (lambda: vlmkit.load_chat_model(7), "name is 7"),
        (lambda: vlmkit.Index.open(3), "path is 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "call",  # the same in each process of pytest
)
def test_values_of_a_wrong_kind_are_told(call, told: str) -> None:
    with pytest.raises(vlmkit.VlmkitError, match=told):
        call()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"text": 3}, "text is 3"), ({"like": 3}, "like is 3"), ({"k": 0}, "k is 0"), ({"model": 3}, "model is 3")],
)
def test_a_search_tells_values_of_a_wrong_kind(index, wrong: dict, told: str) -> None:
    with pytest.raises(vlmkit.VlmkitError, match=told):
        index.search(**({"text": "a cat"} | wrong))
