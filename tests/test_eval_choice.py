"""Multiple choice in `vlmkit eval`, and the letters of options in `vqa`."""

from pathlib import Path

import pytest
from helpers import jsonl, records
from hosted import question
from predictions import by_metric

from vlmkit.metrics.choice import option_named

BIRDS = {"A": "an owl", "B": "a crow", "C": "a white crow", "D": "none of these"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("C", "C"),
        ("(c)", "C"),
        ("**B.**", "B"),
        ("Option D", "D"),
        ("B. a crow", "B"),
        ("b) a crow", "B"),
        ("The answer is (A).", "A"),
        ("It's A", "A"),
        (r"\boxed{C}", "C"),
        ("A crow", "B"),
        ("Answer: A crow", "B"),
        ("It is a white crow.", "C"),
        ("<think>A or B?</think> B", "B"),
        ("A. an owl B. a crow\nAnswer: B", "B"),
        ("A or B", None),
        ("Not B", None),
        ("A is wrong, B is right", None),
        ("An owl and a crow", None),
        ("E", None),
        ("I see nothing", None),
        ("", None),
    ],
)
def test_the_option_that_an_answer_names(answer: str, letter: str | None) -> None:
    assert option_named(answer, BIRDS) == letter


@pytest.mark.parametrize(
    "options",
    [
        {"A": "owl", "B": "crow", "answers": ["B"]},
        {"A": "owl", "B": "crow", "C": "", "answers": ["crow"]},
        {"options": ["owl", "crow"], "answers": ["(B)"]},
        {"options": "['owl', 'crow']", "answers": ["B"]},
        {"options": ["A. owl", "B. crow"], "answers": ["b"]},
        {"options": {"A": "owl", "B": "crow"}, "answers": ["B"]},
        {"options": {"text": ["owl", "crow"], "label": ["A", "B"]}, "answers": ["B"]},
        {"choices": ["owl", "crow"], "answers": 1},
        {"option_a": "owl", "option_b": "crow", "answers": "crow"},
        {"question": "Which?\nA. owl\nB. crow\nGive the letter.", "answers": ["B"]},
    ],
)
@pytest.mark.parametrize(("task", "metric"), [("choice", "accuracy"), ("vqa", "exact")])
def test_forms_of_options(vlmkit, options: dict, task: str, metric: str) -> None:
    said = ["B", "(B) crow", "a crow", "A", "no idea", ""]
    rows = [{"id": str(i), "question": "Which?", "answer": text, **options} for i, text in enumerate(said)]
    found = by_metric(vlmkit("eval", task, stdin=jsonl(*rows)).stdout)[metric]
    assert (found["value"], found["n"], found["unparsed"]) == (0.5, 6, 2)


def test_numbers_are_places_unless_the_options_are_numbers(vlmkit) -> None:
    rows = [
        {"id": "1", "choices": ["3", "1"], "answers": 1, "answer": "B"},
        {"id": "2", "choices": [3, 1], "answers": 1, "answer": "B"},
        {"id": "3", "choices": ["3", "1"], "answers": "3", "answer": "A"},
    ]
    assert by_metric(vlmkit("eval", "choice", stdin=jsonl(*rows)).stdout)["accuracy"]["value"] == 1
    done = vlmkit("eval", "choice", stdin=jsonl(rows[0] | {"answers": "7"}), code=2)
    assert done.stderr == b"vlmkit: 1: 7 is not one of its options: give the letter of the right option\n"


def test_copies_with_turned_options_are_right_together(vlmkit, tmp_path: Path) -> None:
    rows = ["index\tquestion\tA\tB\tanswer\tprediction\tcategory"]
    rows += ["5\tq\tx\ty\tA\tA\teasy", "1000005\tq\ty\tx\tB\tB\teasy"]
    rows += ["6\tr\tx\ty\tA\tA\thard", "1000006\tr\ty\tx\tB\tA\thard"]
    (tmp_path / "mm.tsv").write_text("\n".join(rows))
    done = vlmkit("eval", "choice", "mm.tsv", "--by", "category").stdout
    found = by_metric(done)
    assert (found["accuracy"]["value"], found["accuracy"]["n"]) == (0.75, 4)
    assert (found["circular_accuracy"]["value"], found["circular_accuracy"]["n"]) == (0.5, 2)
    hardest = [(r["category"], r["metric"]) for r in records(done) if r.get("hardest") is True]
    assert hardest == [("hard", "accuracy"), ("hard", "circular_accuracy"), ("hard", "unparsed")]


@pytest.mark.parametrize("letter", ["A", "B", "I"])
def test_the_letter_of_an_option_is_no_article(vlmkit, letter: str) -> None:
    said = [letter, f"({letter})", f"{letter}.", f"[{letter.lower()}]", "The", "(C)"]
    rows = [{"id": str(i), "answers": [letter], "answer": text} for i, text in enumerate(said)]
    rows.append({"id": "9", "answers": [letter], "answer": f"The answer is {letter}"})
    found = by_metric(vlmkit("eval", "vqa", stdin=jsonl(*rows)).stdout)
    assert found["exact"]["value"] == pytest.approx(4 / 7) and found["relaxed"]["value"] == pytest.approx(5 / 7)


def test_an_article_before_an_option_is_no_letter(vlmkit) -> None:
    """And what names no option counts for nothing, under `relaxed` too."""
    said = ["A crow", "A crow is shown, so B", "Not B", "Both A and B"]
    rows = [
        {"id": str(i), "question": "Which?", "choices": ["owl", "crow"], "answers": ["B"], "answer": text}
        for i, text in enumerate(said)
    ]
    found = by_metric(vlmkit("eval", "vqa", stdin=jsonl(*rows)).stdout)
    assert found["exact"]["value"] == found["relaxed"]["value"] == 0.5


ASKED = "Which bird?\nA. owl\nB. crow\nAnswer with the option's letter from the given choices directly."


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"choices": ["owl", "crow"], "answer": 1}, ASKED),
        ({"options": "['owl', 'crow']"}, ASKED),
        ({"A": "owl", "B": "crow", "C": None}, ASKED),
        ({"A": "owl", "B": "crow", "hint": "It is night."}, f"It is night.\n{ASKED}"),
        ({"choices": ["owl", "crow"], "context": "It is night.", "hint": ""}, f"It is night.\n{ASKED}"),
        ({"choices": ["owl", "crow"], "question": "Which?\n(A) owl\n(B) crow"}, "Which?\n(A) owl\n(B) crow"),
        ({"choices": ["owl"], "context": "It is night."}, "Which bird?"),
    ],
)
def test_the_model_sees_the_options(vlmkit, hosted, fields: dict, asked: str) -> None:
    how = ("-m", "openai:tiny", "--base-url", hosted.url)
    row = {"id": "1", "question": "Which bird?"} | fields
    (made,) = records(vlmkit("ask", *how, stdin=jsonl(row)).stdout)
    assert question(hosted.received[0]) == asked and made["question"] == row["question"]
    vlmkit("ask", "Any bird?", *how, stdin=jsonl(row))
    assert question(hosted.received[1]) == "Any bird?"


def test_choices_are_asked_and_scored(vlmkit, hosted) -> None:
    rows = [{"id": str(i), "question": "Which bird?", "choices": ["owl", "crow"], "answer": i} for i in range(2)]
    asked = vlmkit("ask", "-m", "openai:tiny", "--base-url", hosted.url, stdin=jsonl(*rows)).stdout
    made = [row | {"answer": "B"} for row in records(asked)]
    assert by_metric(vlmkit("eval", "choice", stdin=jsonl(*made)).stdout)["accuracy"]["value"] == 0.5
