"""Questions made from captions by rule, easy-VQA, and the command that writes the data of mini."""

import subprocess
import sys
from collections import Counter, defaultdict
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest
from helpers import SOURCE_TREE, jsonl, picture, records
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.io.inputs import records_of
from vlmkit.recipes.mini.caption_questions import questions
from vlmkit.recipes.mini.caption_questions.mentions import actions, mentions, places, tokens
from vlmkit.recipes.mini.caption_questions.presence import shown
from vlmkit.recipes.mini.caption_questions.scene import Scene
from vlmkit.recipes.mini.caption_questions.wordlists import (
    ACTIONS,
    ANIMALS,
    CLOTHES,
    COLORS,
    PEOPLE,
    SIGHTS,
    THINGS,
    UNLIKE,
    nouns,
)

pytestmark = pytest.mark.recipes

rules = import_module("vlmkit.recipes.mini.caption_questions.rules")

FILLERS = ("a", "two", "the", "another", "running", "sits", "in", "on", "no", "of", "mouth", "and", ",", ".", "'s")
COMMAND = ("vlmkit.recipes.mini.data", "train.jsonl", "--val", "dev.jsonl", "--daquar", "asked.jsonl")


def scene(*captions: str) -> Scene:
    return Scene([tokens(caption) for caption in captions])


def asked(*captions: str) -> dict[str, tuple[str, ...]]:
    """All that the rules ask about one picture, in their first wording, before balancing."""
    return {
        text: answers
        for _, rule in rules.RULES
        for text, answers in rule(scene(*captions), lambda _, *wordings: wordings[0])
    }


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("A brown dog runs .", [("dog", 1, {"brown"})]),
        ("Two small black and white puppies play", [("dog", 2, {"black", "white"})]),
        ("A black and a white dog run", [("dog", None, {"white"})]),
        ("dogs chase a dog toy", [("dog", None, set()), ("toy", 1, set())]),
        ("A man in a grey T-shirt without a hat eats a hot dog", [("man", 1, set()), ("shirt", 1, {"gray"})]),
        ("The boy 's red and blue striped cap", [("boy", None, set()), ("cap", 1, {"red", "blue"})]),
        ("3 girls slide down", [("girl", 3, set())]),
        ("A crowd watches a dirt bike", [("person", None, set()), ("motorcycle", 1, set())]),
        ("a german shepherd", [("dog", 1, set())]),
    ],
)
def test_mentions(caption: str, found: list) -> None:
    assert [(m.name, m.number, set(m.colors)) for m in mentions(tokens(caption))] == found


def test_actions_and_places() -> None:
    assert actions(tokens("A dog runs and is jumping over jumps in the stands")) == {"running", "jumping"}
    assert actions(tokens("A swimming pool with a climbing wall")) == set()
    assert places(tokens("A dog runs across the green grass near a lake")) == {"grass"}


def test_what_captions_agree_on_is_asked() -> None:
    found = asked(
        "A brown dog is running in the snow .",
        "A brown dog runs through the snow with a red ball in its mouth .",
        "A dog running in the deep snow carrying a ball in its mouth .",
        "The dog runs .",
        "Brown dog in snow .",
    )
    expected = {
        "how many dogs are there?": "1",
        "what color is the dog?": "brown",
        "what color is the ball?": "red",
        "what animal is in the picture?": "dog",
        "what is in the dog's mouth?": "ball",
        "what is the dog doing?": "running",
        "where is the dog?": "snow",
        "is the dog brown?": "yes",
        "is the dog white?": "no",
        "is the dog running?": "yes",
        "is the dog sleeping?": "no",
        "is there a dog?": "yes",
        "is there snow?": "yes",
        "is there a ball?": "yes",
        "is there a person?": "no",
        "is there a boat?": "no",
    }
    assert {text: found[text][0] for text in expected} == expected
    # Tan is brown to others, a running dog may jump, and snow is water.
    assert not {"is the dog tan?", "is the dog black?", "is the dog jumping?", "is there water?"} & found.keys()


def test_people_are_counted_named_and_dressed() -> None:
    two = asked("A man and a woman dance .", "Two people dance .", "Two people in the street .", "A couple dances .")
    assert two["how many people are there?"] == ("2",)
    assert not [text for text in two if "wearing" in text]
    one = asked(
        "A man in a red jacket is riding a bike .",
        "A man wearing a helmet rides his bicycle .",
        "A man with a helmet on a bike .",
        "A cyclist rides down the street .",
    )
    assert one["how many people are there?"] == ("1",)
    assert one["what is the man riding?"] == ("bike",)
    assert one["what is the man wearing?"] == ("helmet", "helmet")
    assert one["what color is the jacket?"] == ("red",)


@pytest.mark.parametrize(
    "captions",
    [
        ("Two brown dogs .", "A brown dog .", "A brown dog ."),
        ("A brown dog .", "A dog and another .", "A dog ."),
        ("A brown dog .", "A brown dog and a boy 's dog .", "Dogs ."),
        ("A statue of a brown dog .", "A brown dog .", "A dog statue ."),
    ],
)
def test_what_captions_leave_open_is_not_asked(captions: tuple[str, ...]) -> None:
    found = asked(*captions)
    assert "what color is the dog?" not in found
    assert "how many dogs are there?" not in found


@pytest.mark.parametrize(
    ("thing", "captions", "answer"),
    [
        ("a man", ["A man .", "A man and a boy ."], True),
        ("a man", ["A man .", "A man .", "A boy .", "A boy ."], None),
        ("a woman", ["A person rides .", "A rider ."], None),
        ("a woman", ["A man sits .", "A man sits ."], False),
        ("a child", ["A woman .", "A girl .", "A girl .", "A lady ."], None),
        ("water", ["A wet dog .", "A dog ."], None),
        ("a car", ["Dogs on a street .", "Dogs ."], None),
        ("a horse", ["An animal .", "An animal ."], None),
        ("a dog", ["A hot dog .", "A hot dog ."], False),
    ],
)
def test_absent_is_only_what_nothing_implies(thing: str, captions: list[str], answer: bool | None) -> None:
    assert shown(scene(*captions), thing) is answer


def test_word_lists_do_not_contradict_each_other() -> None:
    words = Counter(chain(*chain(*(table.values() for table in (ANIMALS, PEOPLE, CLOTHES, THINGS)))))
    assert set(words.values()) == {1}
    assert {plural for plural, (_, many) in nouns().items() if many}.isdisjoint(words - Counter(PEOPLE["person"]))
    assert UNLIKE.keys() <= ACTIONS.keys()
    for sight in SIGHTS.values():
        assert sight.get("classes", frozenset()) <= ANIMALS.keys() | PEOPLE.keys() | THINGS.keys()


noise = st.lists(st.sampled_from([*nouns(), *COLORS, *FILLERS]), max_size=8).map(" ".join)
plausible = st.builds(
    "{} {} {} is {} in the snow .".format,
    st.sampled_from(["A", "The", "Two", "A small"]),
    st.sampled_from(["brown", "black", "red", "black and white"]),
    st.sampled_from(["dog", "dogs", "man", "ball", "horse"]),
    st.sampled_from(["running", "sitting", "jumping"]),
)
captions = st.one_of(plausible.map(lambda caption: [caption] * 3), st.lists(noise | plausible, min_size=1, max_size=5))


@given(st.lists(captions, min_size=1, max_size=12), st.integers(0, 3))
def test_questions_are_balanced_whatever_the_captions(pictures: list[list[str]], seed: int) -> None:
    rows = [{"id": str(i), "image": f"/{i}.jpg", "captions": found} for i, found in enumerate(pictures)]
    made = list(questions(rows, seed))
    assert_balanced(made)
    assert made == list(questions(rows, seed))


def assert_balanced(made: list[dict]) -> None:
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    for row in made:
        by_text[row["question"]][row["answers"][0]] += 1
    for text, answers in by_text.items():
        assert max(answers.values()) * 2 <= answers.total(), text
        if answers.keys() & {"yes", "no"}:
            assert answers["yes"] == answers["no"] > 0, text


def test_questions_about_flickr8k(shared: Path) -> None:
    rows = list(records_of([str(shared / "data/flickr8k/dev-000.tar")]))
    made = list(questions(rows))
    assert_balanced(made)
    counts = Counter(row["category"] for row in made)
    assert counts.keys() == {"yes-no", "number", "color", "object", "action"}
    assert min(counts.values()) > 100
    assert len({row["id"] for row in made}) == len(made)
    assert [row["image"] for row in made] == sorted(
        (row["image"] for row in made), key=[row["image"] for row in rows].index
    )
    reported = {row["image"]: " ".join(row["captions"]).lower() for row in rows}
    for row in made:  # no answer comes from nowhere
        if row["category"] == "color":
            names = {name for word in row["answers"][0].split() for name in COLORS.get(word, [])}
            assert any(name in reported[row["image"]] for name in names), row
    other = list(questions(rows, seed=1))
    assert_balanced(other)
    assert other != made


def write_data(folder: Path, *more: str, seed: str = "0") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", *COMMAND, *more],
        cwd=folder,
        capture_output=True,
        env=SOURCE_TREE | {"PYTHONHASHSEED": seed},
    )


def test_the_data_of_mini_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    dogs = ["A brown dog runs .", "A brown dog running .", "A brown dog is running .", "The dog runs ."]
    men = ["A man sits .", "A man in a red shirt sits .", "A man is sitting .", "A man ."]
    for name in ("train", "dev"):
        rows = [{"image": f"{name}{i}.png", "captions": (dogs, men)[i % 2]} for i in range(8)]
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(*rows))
    picture(tmp_path / "train0.png")
    rooms = [{"image": f"rooms/image{i // 2}.png", "id": str(i), "question": "?", "answers": ["1"]} for i in range(200)]
    (tmp_path / "asked.jsonl").write_bytes(jsonl(*rooms))
    done = write_data(tmp_path, "-o", "one", "--limit", "60")
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 8
    assert write_data(tmp_path, "-o", "two", "--limit", "60", seed="7").returncode == 0
    made = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    rows = {name.removesuffix(".jsonl"): records(data) for name, data in made.items()}
    assert [row["image"] for row in rows["train-captions"]] == [str(tmp_path / f"train{i}.png") for i in range(8)]
    assert {row["category"] for row in rows["train-questions"]} == {"yes-no"}
    training, held_out = ({row["image"] for row in rows[name]} for name in ("daquar-train", "daquar-dev"))
    assert not training & held_out
    assert len(training | held_out) == 60
    assert 1 <= len(held_out) <= 15
    assert {len({row["image"] for row in rows[name]}) for name in ("easy-train", "easy-test")} == {60}
    again = write_data(tmp_path, "-o", "one")
    assert (again.returncode, again.stderr) == (
        2,
        b"data: one is not empty: name a new folder with -o, or remove this one\n",
    )


def test_a_row_that_cannot_be_read_leaves_no_folder(tmp_path: Path) -> None:
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl({"image": "a.png", "captions": ["A dog ."]}) + b"{\n")
    (tmp_path / "asked.jsonl").touch()
    done = write_data(tmp_path, "-o", "one")
    assert done.returncode == 2
    assert done.stderr.startswith(b"data: ") and done.stderr.count(b"\n") == 1
    assert not (tmp_path / "one").exists()
