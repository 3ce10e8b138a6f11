"""DATA of align, instruct and prefer: what each form becomes, what is dropped and reported, what an epoch draws."""

import io
import json
import os
import pty
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from helpers import jpeg, jsonl, picture, records, tar
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.images import check_picture, open_picture
from vlmkit.io.sources import PictureError, open_source
from vlmkit.io.terminal import Failures
from vlmkit.train.data import samples as rows
from vlmkit.train.data.dataset import read_data
from vlmkit.train.data.mixture import GROUP, Mixture, held_out, parse_weight
from vlmkit.train.data.report import Counts
from vlmkit.train.data.samples import Dialogue, Preference, Turn, parse_dialogues, parse_preferences


def read(*data: object, **options) -> Mixture[Dialogue]:
    """A reading in which nothing may fail."""
    with Failures() as failures:
        made = read_data([str(path) for path in data], parse_dialogues, failures=failures, **options)
    assert failures.exit_code() is Exit.OK
    return made


def write(path: Path, *lines: dict) -> Path:
    path.write_bytes(jsonl(*lines))
    return path


def asked(dialogue: Dialogue) -> list[tuple[str, str]]:
    return [(turn.user, turn.reply) for turn in dialogue.turns]


def test_captions_are_one_dialogue_each(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    made = read(
        write(
            tmp_path / "x.jsonl",
            {"image": "a.png", "captions": ["A dog.", " A cat on the left. "]},
            {"id": "b", "image": "a.png", "caption": "A cow.", "caption_model": "toy"},
        )
    )
    assert [asked(row) for row in made.rows] == [
        [("<image>", "A dog.")],
        [("<image>", "A cat on the left.")],
        [("<image>", "A cow.")],
    ]
    assert [row.id for row in made.rows] == [str(tmp_path / "a.png")] * 2 + ["b"]
    assert [row.mirror for row in made.rows] == [True, False, True]  # a mirror makes left right
    assert {row.pictures for row in made.rows} == {(open_source(str(tmp_path / "a.png")),)}


@pytest.mark.parametrize(
    ("fields", "reply"),
    [
        ({"answers": ["red", "blue", "blue"]}, "blue"),
        ({"answers": ["red", "blue"]}, "red"),  # the first of the most frequent
        ({"answer": "green", "answer_model": "toy"}, "green"),  # as `ask` writes it
        ({"answers": ["red"], "answer": "green"}, "red"),
        ({"answers": [], "answer": "green"}, "green"),
        ({"answers": ["red"], "captions": ["A ball."]}, "red"),
        ({"answer": 7}, "7"),
        ({"answers": [2, 3.0, 3]}, "3"),
        ({"answer": True}, "true"),
        ({"answers": "red"}, "red"),
        ({"answer": {"answer": "red"}}, "red"),
        ({"answer": [1, 2]}, "[1, 2]"),
        ({"answer": ["blue", "red", "red"]}, "red"),
        ({"answers": [{"answer": "red", "answer_id": 1}, {"answer": 9}, {"answer": 9}]}, "9"),
    ],
)
def test_a_question_has_its_most_frequent_answer(tmp_path: Path, fields: dict, reply: str) -> None:
    picture(tmp_path / "a.png")
    (row,) = read(write(tmp_path / "x.jsonl", {"image": "a.png", "question": "What color?", **fields})).rows
    assert asked(row) == [("<image>\nWhat color?", reply)]
    assert not row.mirror


def test_pictures_stand_where_the_marks_are(tmp_path: Path) -> None:
    one, two = picture(tmp_path / "one.png"), picture(tmp_path / "two.png", "blue")
    made = read(
        write(
            tmp_path / "x.jsonl",
            {"id": "a", "images": ["one.png", str(two)], "question": "Same?", "answers": ["no"]},
            {"id": "b", "images": ["two.png", "one.png"], "question": "Is <image> like <image>?", "answers": ["no"]},
            {"id": "c", "question": "Two and two?", "answers": ["4"]},
        )
    )
    assert [asked(row)[0][0] for row in made.rows] == [
        "<image>\n<image>\nSame?",
        "Is <image> like <image>?",
        "Two and two?",
    ]
    sources = [open_source(str(path)) for path in (one, two)]
    assert [row.pictures for row in made.rows] == [(sources[0], sources[1]), (sources[1], sources[0]), ()]


def test_llava_json_is_read_as_it_is(tmp_path: Path) -> None:
    picture(tmp_path / "coco/train2017/1.jpg")
    said = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "What is it?\n<image>"},
        {"from": "gpt", "value": "A square."},
        {"from": "human", "value": "Its color?"},
        {"from": "gpt", "value": "Red."},
    ]
    (tmp_path / "llava.json").write_text(
        json.dumps(
            [
                {"id": "1", "image": "train2017/1.jpg", "conversations": said},
                {"id": "1", "image": ["train2017/1.jpg"], "conversations": said[1:3]},  # ids are not unique in LLaVA
                {"id": "text", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            ]
        )
    )
    made = read(tmp_path / "llava.json", images=str(tmp_path / "coco"))
    assert [len(row.turns) for row in made.rows] == [2, 1, 1]
    assert [row.system for row in made.rows] == ["Be brief.", "", ""]
    assert made.rows[0].turns[1] == Turn("Its color?", "Red.")
    assert [len(row.pictures) for row in made.rows] == [1, 1, 0]


def test_coco_captions_are_looked_up_in_the_folder_of_images(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg"):
        picture(tmp_path / "train2017" / name)
    document = {
        "info": {"year": 2017},
        "images": [{"id": 2, "file_name": "2.jpg", "height": 30}, {"id": 1, "file_name": "1.jpg"}],
        "annotations": [
            {"id": 7, "image_id": 1, "caption": "A one."},
            {"id": 8, "image_id": 2, "caption": "A two.\n"},
            {"id": 9, "image_id": 1, "caption": "An ace."},
        ],
    }
    (tmp_path / "captions_train2017.json").write_text(json.dumps(document, indent=1))
    made = read(tmp_path / "captions_train2017.json", images=str(tmp_path / "train2017"))
    assert [(row.id, row.turns[0].reply) for row in made.rows] == [("2", "A two."), ("1", "A one."), ("1", "An ace.")]
    assert [(row.read, row.kept, row.samples) for row in made.table] == [(2, 2, 3)]


def test_tar_shards_and_records_about_their_members(tmp_path: Path) -> None:
    shard = tar(
        tmp_path / "x.tar",
        {
            "a.jpg": jpeg(),
            "a.json": json.dumps({"id": "a", "captions": ["One.", "Two."]}).encode(),
            "b.jpg": jpeg("blue"),
            "b.txt": b"A blue thing.\n",
            "c.jpg": jpeg("green"),
            "c.json": json.dumps({"question": "Color?", "answers": ["green"]}).encode(),
        },
    )
    made = read(
        shard, write(tmp_path / "q.jsonl", {"image": f"{shard}/a.jpg", "question": "Color?", "answers": ["red"]})
    )
    assert [row.turns[0].reply for row in made.rows] == ["One.", "Two.", "A blue thing.", "green", "red"]
    assert list(made.groups) == [[0, 1, 4], [2], [3]]  # the same picture, named in two ways


def test_standard_input_is_data(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    program = (
        "from vlmkit.io.terminal import Failures\n"
        "from vlmkit.train.data.dataset import parse_dialogues, read_data\n"
        "made = read_data(['2:-'], parse_dialogues, failures=Failures())\n"
        "print(made.rows[0].turns[0].reply, made.table[0].name, made.table[0].weight)"
    )
    piped = jsonl({"image": "a.png", "captions": ["A dog."]})
    done = subprocess.run([sys.executable, "-c", program], input=piped, capture_output=True, cwd=tmp_path, check=True)
    assert done.stdout == b"A dog. - 2.0\n"


GOOD = {"id": "good", "image": "a.png", "question": "What?", "answers": ["dog"]}
SAID = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (GOOD | {"image": "gone.png"}, "missing picture"),
        (GOOD | {"image": "."}, "missing picture"),
        (GOOD | {"image": "page.jpg"}, "unreadable picture"),
        (GOOD | {"image": "cut.jpg"}, "unreadable picture"),
        (GOOD | {"image": "empty.png"}, "unreadable picture"),
        (GOOD | {"image": "https://example.org/a.png"}, "picture by URL"),
        (GOOD | {"image": 7}, "malformed row"),
        ({"id": "x", "left_photo": "a.png", "question": "What?", "answers": ["dog"]}, "malformed row"),
        ({"id": "x", "messages": ["hi"]}, "malformed conversation"),
        ({"id": "x", "messages": [{"role": "user", "content": [{"type": "video"}]}]}, "malformed conversation"),
        (GOOD | {"images": ["b.png"]}, "malformed row"),
        (GOOD | {"image": "", "question": "<image>?"}, "more <image> placeholders than pictures"),
        (GOOD | {"images": ["a.png", "gone.png"]}, "missing picture"),
        (GOOD | {"answers": [" "]}, "empty reply"),
        (GOOD | {"answers": []}, "empty reply"),
        (GOOD | {"answers": {"x": ["dog"]}}, "malformed row"),
        (GOOD | {"question": ""}, "empty question"),
        (GOOD | {"question": "<image> <image>?"}, "more <image> placeholders than pictures"),
        (GOOD | {"images": ["a.png"] * 3, "question": "<image> <image>?"}, "fewer <image> placeholders than pictures"),
        (GOOD | {"answers": ["<image>"]}, "<image> in a reply"),
        ({"id": "x", "question": "Is <image> red?", "answers": ["yes"]}, "more <image> placeholders than pictures"),
        ({"id": "x", "image": "a.png"}, "malformed row"),
        ({"id": "x", "image": "a.png", "captions": []}, "malformed row"),
        ({"id": "x", "image": "a.png", "captions": ["A dog.", ""]}, "empty reply"),
        ({"id": "x", "captions": ["A dog."]}, "caption without a picture"),
        ({"id": "x", "image": "a.png", "conversations": []}, "malformed conversation"),
        ({"id": "x", "image": "a.png", "conversations": SAID[::-1]}, "malformed conversation"),
        ({"id": "x", "image": "a.png", "conversations": SAID[:1]}, "malformed conversation"),
        (
            {"id": "x", "image": "a.png", "conversations": [*SAID, {"from": "gpt", "value": "!"}]},
            "malformed conversation",
        ),
        ({"id": "x", "image": "a.png", "conversations": [{"from": "human"}, {}]}, "malformed row"),
        ({"id": "x", "image": "a.png", "conversations": ["hi"]}, "malformed conversation"),
        (GOOD, "repeats an earlier row"),
        ("no JSON", "unreadable row"),
    ],
)
def test_what_cannot_be_used_is_dropped_counted_and_named(tmp_path: Path, bad: dict | str, reason: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    (tmp_path / "cut.jpg").write_bytes(jpeg(size=(200, 200))[:-300])
    (tmp_path / "empty.png").touch()
    line = bad.encode() + b"\n" if isinstance(bad, str) else jsonl(bad)
    (tmp_path / "x.jsonl").write_bytes(jsonl(GOOD) + line)
    with Failures(str(tmp_path / "errors.jsonl")) as failures:
        made = read_data([str(tmp_path / "x.jsonl")], parse_dialogues, failures=failures)
    assert failures.exit_code() is Exit.SOME_FAILED
    assert [row.id for row in made.rows] == ["good"]
    (table,) = made.table
    assert (table.read, table.kept, table.dropped, table.reasons) == (2, 1, 1, Counter({reason: 1}))
    (error,) = records((tmp_path / "errors.jsonl").read_bytes())
    assert error["id"] == (bad["id"] if isinstance(bad, dict) else f"{tmp_path / 'x.jsonl'}:2")
    if isinstance(bad, dict) and reason in ("missing picture", "unreadable picture"):
        named = bad["images"][1] if "images" in bad else bad["image"]
        assert error["image"] in (named, str((tmp_path / named).resolve()))


def test_an_empty_field_is_one_that_is_missing(tmp_path: Path) -> None:
    """As in tables, where all rows have all columns."""
    empty = {"id": "", "image": "", "images": None, "question": "", "answers": [], "captions": None, "system": None}
    picture(tmp_path / "a.png")
    filled: list[dict] = [
        {"conversations": SAID},
        {"conversations": [], "question": "What?", "answers": ["dog"]},
        {"conversations": None, "image": "a.png", "caption": "A dog.", "captions": []},
    ]
    (tmp_path / "x.jsonl").write_bytes(jsonl(*(empty | row for row in filled)))
    made = read_data([str(tmp_path / "x.jsonl")], parse_dialogues, failures=Failures())
    assert [(len(row.pictures), row.turns[0].reply) for row in made.rows] == [(0, "A dog."), (0, "dog"), (1, "A dog.")]
    assert len({row.id for row in made.rows}) == 3


IMAGE_PART = {"type": "image_url", "image_url": {"url": "a.png"}}
CHAT = [{"role": "user", "content": [IMAGE_PART, {"type": "text", "text": "What?"}]}]
CHAT += [{"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}]


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"messages": CHAT}, [("<image>\nWhat?", "A dog.")]),
        (
            {"image_path": "a.png", "messages": [{**CHAT[0], "content": "What?"}, CHAT[1]]},
            [("<image>\nWhat?", "A dog.")],
        ),
        (
            {"images": ["a.png"], "messages": [{"role": "user", "content": [{"type": "image"}]}, CHAT[1]]},
            [("<image>", "A dog.")],
        ),
        (
            {
                "image": "a.png",
                "conversations": [{"role": "user", "content": "What?"}, CHAT[1] | {"content": "A dog."}],
            },
            [("<image>\nWhat?", "A dog.")],
        ),
        ({"image": "a.png", "instruction": "What?", "response": "A dog."}, [("<image>\nWhat?", "A dog.")]),
        (
            {"file_name": "a.png", "instruction": "Add.", "input": "1 and 2", "output": 3},
            [("<image>\nAdd.\n1 and 2", "3")],
        ),
        ({"image": "a.png", "question": "How many?", "answer": 2}, [("<image>\nHow many?", "2")]),
        ({"img": "a.png", "question": "How many?", "response": 2}, [("<image>\nHow many?", "2")]),
        ({"image_path": "a.png", "prompt": "What?", "completion": "A dog."}, [("<image>\nWhat?", "A dog.")]),
        (
            {"images": ["a.png"], "texts": [{"user": "1?", "assistant": "2", "source": "x"}] * 2},
            [("<image>\n1?", "2"), ("1?", "2")],
        ),
    ],
)
def test_forms_of_other_tools(tmp_path: Path, record: dict, turns: list) -> None:
    picture(tmp_path / "a.png")
    (row,) = read(write(tmp_path / "x.jsonl", record)).rows
    assert asked(row) == turns and row.pictures == (open_source(str(tmp_path / "a.png")),)


def test_a_missing_picture_of_many_rows_is_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmkit.train.data import dataset as dialogues

    looked: list[str] = []
    monkeypatch.setattr(dialogues, "open_source", lambda name: looked.append(name) or open_source(name))
    picture(tmp_path / "a.png")
    lines = [GOOD | {"id": str(i), "image": "ab"[i % 2] + ".png"} for i in range(40)]
    with Failures() as failures:
        made = read_data([str(write(tmp_path / "x.jsonl", *lines))], parse_dialogues, failures=failures, workers=1)
    assert sorted(looked) == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert failures.count == 20
    assert len(made.rows) == 20


def test_nothing_to_train_on_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    gone = write(tmp_path / "x.jsonl", GOOD | {"image": "gone.png"}, GOOD | {"image": "away.png"})
    with Failures() as failures, pytest.raises(VlmkitError, match="2 missing picture"):
        read_data([str(gone)], parse_dialogues, failures=failures)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(VlmkitError, match="no rows"):
        read(tmp_path / "empty.jsonl")
    with pytest.raises(VlmkitError, match=r"gone\.jsonl: no such file"):  # before the other one is read
        read(gone, tmp_path / "gone.jsonl")
    assert len(capfd.readouterr().err.splitlines()) == 2


def test_limit_counts_the_rows_of_each_data(tmp_path: Path) -> None:
    first = write(tmp_path / "1.jsonl", *({"question": f"{i}?", "answers": ["yes"]} for i in range(9)))
    second = write(tmp_path / "2.jsonl", *({"question": f"{i}!", "answers": ["yes"]} for i in range(9)))
    made = read(first, second, limit=4)
    assert [row.turns[0].user for row in made.rows] == [f"{i}{end}" for end in "?!" for i in range(4)]
    assert made.rows[0].id == f"{first}:1"
    assert [row.read for row in made.table] == [4, 4]


def test_preferences(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    row = {"image": "a.png", "question": "What?", "chosen": "A dog.", "rejected": "A cat."}
    data = write(
        tmp_path / "x.jsonl",
        {"id": "1", **row},
        {"id": "2", **row, "rejected": "A dog."},
        {"id": "3", **row, "chosen": ""},
        {"id": "4", "image": "a.png", "question": "What?", "answers": ["dog"]},
        {"id": "5", "image": "a.png", "chosen": "A dog.", "rejected": "A cat."},
        {"id": "6", "chosen": "A dog.", "rejected": "A cat."},
    )
    with Failures() as failures:
        made = read_data([str(data)], parse_preferences, failures=failures)
    source = open_source(str(tmp_path / "a.png"))
    assert list(made.rows) == [
        Preference("1", (source,), "<image>\nWhat?", "A dog.", "A cat."),
        Preference("5", (source,), "<image>", "A dog.", "A cat."),
    ]
    assert made.table[0].reasons == {"chosen and rejected are the same": 1, "empty reply": 1, "malformed row": 2}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9) | st.just("<image>"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["from", "value", "human", "gpt"]), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = (
    "image",
    "images",
    "captions",
    "caption",
    "question",
    "answers",
    "answer",
    "conversations",
    "system",
    "chosen",
)


@given(st.dictionaries(st.sampled_from(FIELDS), json_values), st.integers(0, 2))
def test_any_record_is_used_whole_or_refused(record: dict, count: int) -> None:
    pictures = tuple(open_source(__file__) for _ in range(count))
    try:
        rows.picture_names(record)
        made = rows.parse_dialogues(record, "x", pictures)
    except rows.Unusable as unusable:
        assert str(unusable)
        return
    assert made
    for dialogue in made:
        assert sum(turn.user.count("<image>") for turn in dialogue.turns) == count
        assert all(turn.reply.strip() and turn.user.strip() and "<image>" not in turn.reply for turn in dialogue.turns)


class Data:
    """Bytes in memory, as a picture."""

    mtime = None

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self) -> bytes:
        return self.data


@given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]), st.floats(0, 1), st.booleans())
def test_a_picture_that_is_cut_is_found_without_decoding_it(form: str, kept: float, zeros: bool) -> None:
    stream = io.BytesIO()
    Image.effect_noise((40, 30), 90).convert("RGB").save(stream, form)
    whole = stream.getvalue()
    check_picture(Data(whole))
    cut = whole[: int(kept * len(whole))]
    cut += bytes(len(whole) - len(cut)) * zeros
    try:
        open_picture(Data(cut))
    except PictureError:
        with pytest.raises(PictureError):
            check_picture(Data(cut))
    else:
        check_picture(Data(cut))


def test_a_weight_is_no_part_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2:x.jsonl").touch()
    assert parse_weight("2:x.jsonl") == ("2:x.jsonl", 1)
    assert parse_weight("2:2:x.jsonl") == ("2:x.jsonl", 2)
    assert parse_weight(".5:-") == ("-", 0.5)
    assert parse_weight("1.:y:z") == ("y:z", 1)
    assert parse_weight("a:b") == ("a:b", 1)
    with pytest.raises(VlmkitError, match="weight 0"):
        parse_weight("0.0:x.jsonl")


def mixture(*sources: tuple[float, list[int]]) -> Mixture[Dialogue]:
    """A reading of dialogues about pictures by number (0: none), source by source."""
    made: list[Dialogue] = []
    number: list[int] = []
    for source, (_, shown) in enumerate(sources):
        for which in shown:
            pictures = (open_source(__file__)._replace(offset=which),) * bool(which)
            made.append(Dialogue(f"{source}-{len(made)}", pictures, (Turn("a", "b"),)))
            number.append(source)
    return Mixture(made, number, [Counts(str(i), weight) for i, (weight, _) in enumerate(sources)])


sources = st.lists(
    st.tuples(st.sampled_from([0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0]), st.lists(st.integers(0, 3), max_size=40)),
    min_size=1,
    max_size=3,
)


@given(sources, st.integers(0, 5))
def test_an_epoch_draws_by_weight(data: list[tuple[float, list[int]]], seed: int) -> None:
    made = mixture(*data)
    assert sorted(row for group in made.groups for row in group) == list(range(len(made.rows)))
    assert [group[0] for group in made.groups] == sorted(group[0] for group in made.groups)
    for group in made.groups:
        assert len(group) <= (GROUP if made.rows[group[0]].pictures else 1)
        assert len({(made.rows[row].pictures, data[made.sources[row]][0]) for row in group}) == 1
    drawn: Counter[int] = Counter()
    for epoch in range(8):
        rows = made.epoch_rows(seed, epoch).tolist()
        assert rows == made.epoch_rows(seed, epoch).tolist()
        assert rows == [row for group in made.epoch_groups(seed, epoch) for row in made.groups[group]]
        drawn.update(rows)
        for row in range(len(made.rows)):
            assert abs(drawn[row] - (epoch + 1) * data[made.sources[row]][0]) < 1


def test_half_of_a_source_comes_in_turn() -> None:
    made = mixture((0.5, [0] * 1000), (2, [0] * 10))
    first, second, third = (made.epoch_rows(7, epoch).tolist() for epoch in range(3))
    half = {row for row in first if row < 1000}
    assert 430 < len(half) < 570
    assert {row for row in second if row < 1000} == set(range(1000)) - half
    assert {row for row in third if row < 1000} == half
    assert first != third  # in another order
    assert all(first.count(row) == 2 for row in range(1000, 1010))


def test_held_out_rows_are_those_of_their_ids() -> None:
    made = mixture((1, [0] * 2000))
    training, validation = made.split(0.2)
    assert 330 < len(validation.rows) < 470
    assert {row.id for row in validation.rows} == {row.id for row in made.rows if held_out(row.id, 0.2)}
    assert len(training.rows) + len(validation.rows) == 2000
    assert not {row.id for row in training.rows} & {row.id for row in validation.rows}
    for fraction in (0.0, 1.0):
        with pytest.raises(VlmkitError, match="not between"):
            made.split(fraction)
    with pytest.raises(VlmkitError, match="too few"):
        mixture((1, [0])).split(0.5)


SHOW = """
from collections import Counter
from vlmkit.train.data.report import Counts, show
show([Counts("a.jsonl", 2.0, 9, 30, Counter({"missing picture": 2})), Counts("[b].tar", 1.0, 5, 5)])
"""


def test_the_table_is_plain_lines_in_a_file() -> None:
    done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, check=True)
    assert done.stdout == b""
    assert done.stderr.decode().splitlines() == [
        "vlmkit: a.jsonl: 9 rows read, 7 kept (30 samples), weight 2, 2 dropped: 2 missing picture",
        "vlmkit: [b].tar: 5 rows read, 5 kept (5 samples), 0 dropped",
    ]


def test_the_table_is_one_on_a_terminal() -> None:
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", SHOW], stderr=slave, env=os.environ | {"NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "90"}
    )
    os.close(slave)
    shown = bytearray()

    def follow() -> None:
        try:
            while more := os.read(master, 4096):
                shown.extend(more)
        except OSError:  # Linux: the other side is closed
            pass

    reader = threading.Thread(target=follow)
    reader.start()
    assert child.wait() == 0
    reader.join()
    os.close(master)
    head, first, second = (line.split() for line in shown.decode().splitlines() if line.strip())
    assert head == ["data", "weight", "read", "kept", "dropped", "samples", "why"]
    assert first == ["a.jsonl", "2", "9", "7", "2", "30", "2", "missing", "picture"]
    assert second == ["[b].tar", "1", "5", "5", "0", "5"]


def test_daquar_and_flickr8k_are_read_as_they_are(shared: Path) -> None:
    made = read(shared / "data/daquar/questions.jsonl", shared / "data/flickr8k/dev-000.tar")
    assert [(row.read, row.kept, row.samples) for row in made.table] == [(9883, 9883, 9883), (1000, 1000, 5000)]
    assert asked(made.rows[0]) == [("<image>\nwhat is the object on the shelves", "cup")]
    assert len(made.groups) < 1149 + 200 + 1000
