"""Captions as alt text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.generate.alt_text import alt_text


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("a dog runs across the grass .", "A dog runs across the grass."),
        ("a dog runs", "A dog runs."),
        ("a picture of a dog", "A dog."),
        ("An image of two men", "Two men."),
        ("This image shows a red car parked outside.", "A red car parked outside."),
        ("the photo shows a cat", "A cat."),
        ("there is a boat on the lake", "A boat on the lake."),
        ("In this picture, a child smiles", "A child smiles."),
        ("a picture frame on a wall", "A picture frame on a wall."),
        ("a black and white photo of a man", "A black and white photo of a man."),
        ("a man holds a photo of a dog", "A man holds a photo of a dog."),
        ("a man . he wears a hat .", "A man."),
        ("A man on St. Mark's Square. He wears a hat.", "A man on St. Mark's Square."),
        ("the dog 's ball , red", "The dog's ball, red."),
        ("is it a bird?", "Is it a bird?"),
        ("a dog,", "A dog."),
        ("  a\n dog ", "A dog."),
        ("", ""),
        (" . ", "."),
        ("A box of 20 fl. oz. bottles vs. cans, approx. 9 lbs. each. It is open.", None),
        ("About ten boats lie at pier no. 7 resp. vol. 2. The sea is calm.", None),
        ("猫とコーヒー", "猫とコーヒー。"),
        ("Prof. Adams of the U.K. speaks to Mr. Lee. They smile.", None),
        ("Some tools, i.e. a saw etc., hang on a wall. It is old.", None),
        ("На вывеске: ул. Мира, д. 5. Идёт снег.", "На вывеске: ул. Мира, д. 5."),
        ('A banner says "Vote now!" Two people hold it.', 'A banner says "Vote now!"'),
        ("A poster says “Quiet.”", "A poster says “Quiet.”"),
        ("Ein Schild: »Halt!«", "Ein Schild: »Halt!«"),
        ("[A page is blank.]", "[A page is blank.]"),
        ("A dog waits…", "A dog waits…"),
        ("犬が走る。雨が降る。", "犬が走る。"),
        ("一条狗？一只猫。", "一条狗？"),
        ("一条狗", "一条狗。"),
        ("एक कुत्ता", "एक कुत्ता।"),
        ("کتا کھڑا ہے۔ بارش ہے۔", "کتا کھڑا ہے۔"),
        ("ما هذا؟ كلب.", "ما هذا؟"),
        ("개가 달린다. 비가 온다.", "개가 달린다."),
        ("สุนัขวิ่ง", "สุนัขวิ่ง"),
    ],
)
def test_one_sentence(said: str, expected: str) -> None:
    """`expected` is None where the first of two sentences is."""
    assert alt_text(said) == (said[: said.rindex(". ") + 1] if expected is None else expected)


def test_long_ones_keep_their_whole_sentences() -> None:
    said = "A man sits. He wears a hat. He looks at"
    assert alt_text(said, sentences=None) == "A man sits. He wears a hat. He looks at."
    assert alt_text(said, sentences=None, cut=True) == "A man sits. He wears a hat."
    assert alt_text("a man looks at", cut=True) == "A man looks at"
    assert alt_text("a man looks .", cut=True) == "A man looks."


def test_what_was_asked_for_stays() -> None:
    assert alt_text("this image shows a dog", guided=True) == "This image shows a dog."


@pytest.mark.slow
@given(st.text(max_size=60))
def test_any_text_becomes_one_line(text: str) -> None:
    made = alt_text(text)
    assert "\n" not in made and made == " ".join(made.split())
    assert made == "" or not made[-1].isspace()
