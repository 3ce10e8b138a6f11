"""What models think aloud, told apart from their answers, whole and as it comes."""

import pytest

from vlmkit.models.chat.reasoning import AnswerStream, split_reasoning, thinks_already

REPLIES = [  # what is said, thought and answered
    ("Two boats.", "", "Two boats."),
    ("<think>\nBoats?\n</think>\n\nTwo boats.", "Boats?", "Two boats."),
    ("<think>Boats?</think>Two boats.", "Boats?", "Two boats."),
    ("<Thinking effort='low'>\nBoats?\n</Thinking>\nTwo boats.", "Boats?", "Two boats."),
    ("<reasoning>Boats?</reasoning> Two boats.", "Boats?", "Two boats."),
    ("<seed:think>Boats?</seed:think>Two boats.", "Boats?", "Two boats."),
    ("[THINK]Boats?[/THINK]Two boats.", "Boats?", "Two boats."),
    ("◁think▷Boats?◁/think▷Two boats.", "Boats?", "Two boats."),
    ("<think>One?</think>\n<think>No.</think>\nTwo boats.", "One?\nNo.", "Two boats."),
    ("<think>They write <think> and </think> here.</think>Two boats.", None, "Two boats."),
    ("Let me see.\n<think>Boats?</think>\nTwo boats.", None, "Two boats."),
    ("Two boats.\n<think>Is that all?</think>\n", "Is that all?", "Two boats."),
    ("<think></think>\n\nTwo boats.", "", "Two boats."),
    ("<think>\nBoats, or", "Boats, or", ""),
    ("<think>Boats?</think><answer>Two boats.</answer>", "Boats?", "Two boats."),
    ("<answer>Two boats.</answer>", "", "Two boats."),
    ("<think>Boats?</think>The answer is <|begin_of_box|>two<|end_of_box|>.", "Boats?", "The answer is two."),
    (
        "<|channel|>analysis<|message|>Boats?<|end|><|start|>assistant<|channel|>final<|message|>Two boats.<|return|>",
        "Boats?",
        "Two boats.",
    ),
    ("analysisBoats?assistantfinalTwo boats.", "Boats?", "Two boats."),
    ("<|channel>thought\nBoats?<channel|>Two boats.", "Boats?", "Two boats."),
    ("<unused94>thought\nBoats?<unused95>Two boats.", "Boats?", "Two boats."),
    ("<|START_THINKING|>Boats?<|END_THINKING|><|START_RESPONSE|>Two.<|END_RESPONSE|>", "Boats?", "Two."),
    ("A board says `</think>`, in red.", "", "A board says `</think>`, in red."),
    ("x < y, and [a] <b>c</b>", "", "x < y, and [a] <b>c</b>"),
]


@pytest.mark.parametrize(("said", "thought", "answered"), REPLIES)
def test_forms(said: str, thought: str | None, answered: str) -> None:
    found, answer = split_reasoning(said)
    assert answer == answered and (thought is None or found == thought)


@pytest.mark.parametrize(("said", "thought", "answered"), REPLIES)
def test_a_stream_shows_the_same(said: str, thought: str | None, answered: str) -> None:
    for size in (1, 3, 7) if thought is not None else ():
        shown: list[str] = []
        stream = AnswerStream(shown.append)
        for start in range(0, len(said), size):
            stream.put(said[start : start + size])
        stream.end()
        assert "".join(shown) == answered and not stream.lost


def test_a_thought_that_the_template_begins() -> None:
    assert split_reasoning("Boats?\n</think>\n\nTwo boats.") == ("Boats?", "Two boats.")
    assert thinks_already("<|im_start|>assistant\n<think>\n") == "<think>"
    assert thinks_already("<|assistant|><think>") == "<think>"
    assert not thinks_already("<think>\n\n</think>\n\n") and not thinks_already("what is <think> about?")
    shown: list[str] = []
    stream = AnswerStream(shown.append, "<think>")
    for piece in ("Boats?", "</th", "ink>", "Two boats."):
        stream.put(piece)
    stream.end()
    assert "".join(shown) == "Two boats." and not stream.lost


def test_a_stream_shows_words_at_once_and_tells_of_late_marks() -> None:
    shown: list[str] = []
    stream = AnswerStream(shown.append)
    stream.put("Boats? ")
    assert shown == ["Boats? "]
    stream.put("No.</think>\n\nTwo boats.")
    stream.end()
    assert "".join(shown) == "Boats? \nTwo boats." and stream.lost
