"""ask, through the installed command, with a small model of random weights."""

import io
import json
from pathlib import Path

import pytest
from helpers import jpeg, jsonl, noise, picture, records, tar
from PIL import Image

from vlmkit.generate.questions import split
from vlmkit.io.sources import is_picture
from vlmkit.io.terminal import SNIFF_BYTES


@pytest.fixture(autouse=True)
def model(environment: dict[str, str], talking: Path) -> str:
    """The model that all commands use by default; its identity's name."""
    environment["VLMKIT_CHAT_MODEL"] = str(talking / "packed")
    return environment["VLMKIT_CHAT_MODEL"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder `some` with three pictures of noise, and a text."""
    (tmp_path / "some").mkdir()
    for name, array in zip("abc", noise(3), strict=True):
        Image.fromarray(array).save(tmp_path / f"some/{name}.png")
    (tmp_path / "some/note.txt").write_text("no picture")
    return tmp_path / "some"


def test_one_question_one_plain_line(vlmkit, folder: Path, tmp_path: Path) -> None:
    done = vlmkit("ask", folder / "a.png", "what color is it?")
    assert done.stdout.count(b"\n") == 1 and done.stdout.strip() and done.stderr == b""
    assert vlmkit("ask", folder / "a.png", "is it red").stdout != done.stdout
    assert vlmkit("ask", folder / "b.png", "what color is it?").stdout != done.stdout
    assert vlmkit("ask", folder / "a.png", "what color is it?", "-o", "answer.txt").stdout == b""
    assert (tmp_path / "answer.txt").read_bytes() == done.stdout


def test_json_is_a_record(vlmkit, folder: Path, model: str) -> None:
    plain = vlmkit("ask", "some/a.png", "what color is it?").stdout.decode().rstrip("\n")
    (row,) = records(vlmkit("ask", "some/a.png", "what color is it?", "--json").stdout)
    path = str(folder / "a.png")
    identity = row.pop("answer_model")
    question = {"id": path, "image": path, "question": "what color is it?"}
    assert 0 <= row.pop("confidence") <= 1
    assert row == question | {"answer": plain, "finish": "stop"}
    name, digits = identity.split("@")
    assert name == model and len(digits) == 12


def test_several_pictures_are_one_question(vlmkit, folder: Path) -> None:
    names = [folder / "a.png", folder / "b.png"]
    done = vlmkit("ask", *names, "what changed?")
    assert done.stdout.count(b"\n") == 1
    assert vlmkit("ask", *reversed(names), "what changed?").stdout != done.stdout
    (row,) = records(vlmkit("ask", *names, "what changed?", "--json").stdout)
    assert row["images"] == list(map(str, names)) and "image" not in row
    assert row["answer"] == done.stdout.decode().strip()


def test_text_alone(vlmkit, folder: Path) -> None:
    done = vlmkit("ask", "what is love?")
    assert done.stdout.count(b"\n") == 1
    (row,) = records(vlmkit("ask", "what is love?", "--json").stdout)
    assert row["question"] == row["id"] == "what is love?" and "image" not in row
    assert row["answer"] == done.stdout.decode().strip()


def test_a_folder_and_a_shard_have_one_question_each(vlmkit, folder: Path, tmp_path: Path) -> None:
    rows = records(vlmkit("ask", folder, "what color is it?").stdout)
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.png", "c.png"]
    assert [row["question"] for row in rows] == ["what color is it?"] * 3
    assert vlmkit("ask", folder / "b.png", "what color is it?").stdout.decode().strip() == rows[1]["answer"]
    members = {f"{n}.png": (folder / f"{n}.png").read_bytes() for n in "abc"}
    shard = tar(tmp_path / "shard.tar", {"a.txt": b"a caption", **members})
    found = records(vlmkit("ask", shard, "what color is it?").stdout)
    assert [row["answer"] for row in found] == [row["answer"] for row in rows]
    assert found[0]["captions"] == ["a caption"] and found[1]["image"] == f"{shard}/b.png"


@pytest.mark.slow
def test_records_bring_their_questions(vlmkit, folder: Path, tmp_path: Path) -> None:
    rows = [
        {"id": "1", "image": "some/a.png", "question": "what color is it?", "answers": ["red"], "k": {"x": [1]}},
        {"id": "2", "images": ["some/a.png", "some/b.png"], "question": "what changed?"},
        {"question": "what is love?"},
        {"id": "4", "image": "some/a.png", "question": "<image>\nwhat color is it?"},
    ]
    (tmp_path / "questions.jsonl").write_bytes(jsonl(*rows))
    found = records(vlmkit("ask", "questions.jsonl").stdout)
    assert [row["question"] for row in found] == [row["question"] for row in rows]
    assert found[0]["answers"] == ["red"] and found[0]["k"] == {"x": [1]}
    assert found[1]["images"] == [str(folder / "a.png"), str(folder / "b.png")]
    assert found[2]["id"] == "what is love?"
    assert found[3]["answer"] == found[0]["answer"], "the mark of LLaVA's data is not part of the question"
    plain = vlmkit("ask", folder / "a.png", folder / "b.png", "what changed?").stdout.decode().strip()
    assert found[1]["answer"] == plain
    piped = records(vlmkit("ask", stdin=jsonl(*rows)).stdout)
    assert piped == found
    replaced = records(vlmkit("ask", "questions.jsonl", "what is love?").stdout)
    assert {row["question"] for row in replaced} == {"what is love?"}


@pytest.mark.slow
def test_what_search_finds_can_be_asked_about(shell, folder: Path) -> None:
    line = "vlmkit embed some/ | vlmkit index && vlmkit search 'noise' -k 2 | vlmkit ask 'what color is it?'"
    done = shell(line)
    assert done.returncode == 0, done.stderr.decode()
    rows = records(done.stdout)
    assert [row["rank"] for row in rows] == [1, 2] and all(row["answer"] and row["answer_model"] for row in rows)


@pytest.mark.slow
def test_answers_can_be_scored(shell, folder: Path) -> None:
    question = {"image": "some/a.png", "question": "what color is it?", "answers": ["red"]}
    (folder.parent / "questions.jsonl").write_bytes(jsonl({"id": "1", **question}, {"id": "2", **question}))
    done = shell("vlmkit ask < questions.jsonl | vlmkit eval vqa --metric exact")
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["n"] == 2


def test_standard_input_may_be_a_picture(vlmkit, folder: Path) -> None:
    data = (folder / "a.png").read_bytes()
    plain = vlmkit("ask", folder / "a.png", "what color is it?").stdout
    assert vlmkit("ask", "what color is it?", stdin=data).stdout == plain
    both = vlmkit("ask", "-", folder / "b.png", "what changed?", stdin=data).stdout
    assert both == vlmkit("ask", folder / "a.png", folder / "b.png", "what changed?").stdout
    assert b"truncated" in vlmkit("ask", "what?", stdin=data[:2000], code=2).stderr


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
def test_pictures_are_reported_by_how_they_begin(form: str) -> None:
    data = io.BytesIO()
    Image.fromarray(noise(1)[0]).save(data, form)
    head = data.getvalue()[:SNIFF_BYTES]
    assert is_picture(head) and not is_picture(b"/some/path.jpg\n") and not is_picture(b"Pictures/a.jpg\n")
    assert not is_picture(b'{"image": "a"}') and not is_picture(b"")


def test_names_on_standard_input(vlmkit, folder: Path) -> None:
    names = "".join(f"{folder}/{n}.png\n" for n in "ab").encode()
    assert len(records(vlmkit("ask", "what color is it?", stdin=names).stdout)) == 2
    zeros = records(vlmkit("ask", "-0", "what color is it?", stdin=names.replace(b"\n", b"\0")).stdout)
    assert len(zeros) == 2


def test_without_a_question(vlmkit, folder: Path, tmp_path: Path) -> None:
    for arguments in (["some/a.png", "some/b.png"], ["some/"]):
        assert b"no question" in vlmkit("ask", *arguments, code=2).stderr
    names = f"{folder}/a.png\n".encode()
    assert b"no question" in vlmkit("ask", stdin=names, code=2).stderr
    assert b"no question" in vlmkit("ask", stdin=(folder / "a.png").read_bytes(), code=2).stderr
    rows = jsonl(
        {"id": "1", "image": str(folder / "a.png"), "question": "a dog"},
        {"id": "2", "image": str(folder / "b.png"), "question": ""},
        {"id": "3", "image": str(folder / "b.png"), "question": 7},
    )
    done = vlmkit("ask", "--errors", "errors.jsonl", stdin=rows, code=3)
    assert [row["id"] for row in records(done.stdout)] == ["1"]
    failed = records((tmp_path / "errors.jsonl").read_bytes())
    assert [(row["id"], row["error"]) for row in failed] == [("2", "no question"), ("3", "no question")]
    assert vlmkit("ask", stdin=b"").stdout == b""
    assert b"the question is empty" in vlmkit("ask", "some/a.png", " ", code=2).stderr


def test_what_cannot_be_read(vlmkit, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    assert b"broken.png" in vlmkit("ask", folder / "broken.png", "what?", code=2).stderr
    done = vlmkit("ask", folder / "a.png", folder / "broken.png", "what?", code=2)
    assert done.stdout == b"" and b"broken.png" in done.stderr
    done = vlmkit("ask", folder, "what?", code=3)
    assert len(records(done.stdout)) == 3 and done.stderr.count(b"\n") == 1
    for missing in (["nothing.jpg"], ["nothing.jsonl", "what?"]):
        assert b"no such file" in vlmkit("ask", *missing, code=2).stderr
    rows = jsonl(
        {"id": "1", "images": [str(folder / "a.png"), "gone.png"], "question": "a"},
        {"id": "2", "images": [7], "question": "a"},
        {"id": "3", "image": 3, "question": "a"},
        {"id": "4", "question": "a dog"},
        {"id": "5", "images": [], "image": str(folder / "a.png"), "question": "a dog"},
        {"id": "6", "question": "a dog " * 600},
    )
    done = vlmkit("ask", "--errors", "errors.jsonl", stdin=rows, code=3)
    assert [row["id"] for row in records(done.stdout)] == ["4", "5"]
    failed = {row["id"]: row["error"] for row in records((folder.parent / "errors.jsonl").read_bytes())}
    assert "gone.png: no such file" in failed["1"] and "images" in failed["2"] and "image" in failed["3"]
    assert "more than the 512" in failed["6"]


@pytest.mark.slow
def test_settings_of_chance(vlmkit, folder: Path) -> None:
    ask = ("ask", folder / "a.png", "what color is it?", "--max-tokens", 12)
    greedy = vlmkit(*ask).stdout
    chance = [vlmkit(*ask, "--temperature", 1, "--seed", seed).stdout for seed in (1, 2, 1)]
    assert chance[0] == chance[2] != chance[1]
    assert vlmkit(*ask, "--temperature", 1, "--top-p", 0).stdout == greedy
    assert len(vlmkit(*ask, "--max-tokens", 8).stdout) < len(greedy)
    assert vlmkit(*ask, "--system", "be kind").stdout != greedy
    assert b"--top-p" in vlmkit(*ask, "--top-p", 0.5, code=2).stderr
    for wrong in (
        ["--temperature", "nan"],
        ["--temperature", -1],
        ["--top-p", 2, "--temperature", 1],
        ["--max-tokens", 0],
    ):
        assert vlmkit(*ask, *wrong, code=2).stdout == b""


def test_the_model_is_reported_by_option_or_environment(
    vlmkit, folder: Path, environment: dict[str, str], model: str
) -> None:
    del environment["VLMKIT_CHAT_MODEL"]
    named = vlmkit("ask", "-m", model, folder / "a.png", "a dog").stdout
    environment["VLMKIT_CHAT_MODEL"] = model
    assert vlmkit("ask", folder / "a.png", "a dog").stdout == named
    noted = vlmkit("ask", "-v", folder / "a.png", "a dog").stderr.decode()
    assert noted.startswith(f"vlmkit: model {model}@") and noted.splitlines()[0].endswith(", device cpu")
    assert b"no such model" in vlmkit("ask", "-m", "./nothing", folder / "a.png", "a dog", code=2).stderr


@pytest.mark.slow
def test_order_is_kept_whatever_the_batch(vlmkit, tmp_path: Path) -> None:
    rows = []
    for number in range(23):
        path = picture(tmp_path / f"{number}.jpg", (number * 11, 90, 255 - number * 11), (40 + number, 30))
        rows.append({"id": str(number), "image": str(path), "question": "what color is it?" * (1 + number % 3)})
    rows[7]["image"] = "missing.jpg"
    found = [
        records(
            vlmkit("ask", "--batch-size", size, "--workers", 3, "--max-tokens", 4, stdin=jsonl(*rows), code=3).stdout
        )
        for size in (1, 5)
    ]
    assert found[0] == found[1]
    assert [row["id"] for row in found[0]] == [str(n) for n in range(23) if n != 7]


@pytest.mark.parametrize(
    ("arguments", "question"),
    [
        (["a.jpg", "what?"], "what?"),
        (["a.jpg"], None),
        (["what is in a.jpg"], None),
        (["-"], None),
        (["https://example.org/a"], None),
        (["a.JSONL"], None),
        (["what?"], "what?"),
        (["x", "y z"], "y z"),
        ([], None),
        (["."], None),
        (["q" * 5000], "q" * 5000),
        (["a.jpg", "pages/"], None),
        (["a.jpg", "My Film.MP4"], None),
        (["letter.pdf#page=2"], None),
        (["./pages"], None),
        (["pages/*"], None),
        (["s3://bucket/pages"], None),
        (["a.jpg", "tea and/or milk?"], "tea and/or milk?"),
        (["a.jpg", "is letter.pdf signed?"], "is letter.pdf signed?"),
    ],
)
def test_the_last_argument(arguments: list[str], question: str | None) -> None:
    assert split(arguments) == (arguments[: len(arguments) - (question is not None)], question)


def test_a_file_of_that_name_is_no_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split(["what"]) == ([], "what")
    (tmp_path / "what").write_bytes(jpeg())
    assert split(["what"]) == (["what"], None)


def test_a_mark_on_the_command_line_needs_a_picture_too(vlmkit, folder: Path) -> None:
    for arguments in (["<image> what is it?"], ["some/a.png", "from <image> to <image>"]):
        assert b"picture of an <image> mark is missing" in vlmkit("ask", *arguments, code=2).stderr
    assert b"end a question with ?" in vlmkit("ask", "some/a.png", "read letter.pdf", code=2).stderr


def test_text_is_read_from_pictures_alone(vlmkit, folder: Path, model: str) -> None:
    """A folder that is missing, named without a slash, is not asked as a question."""
    assert b"pages: no picture" in vlmkit("ask", "pages", "--ocr", "-m", "openai:x", code=2).stderr


@pytest.mark.parametrize(
    ("row", "reported"),
    [
        ({"img_path": "a.png", "file_name": "b.png"}, "img_path"),
        ({"imageFile": "scans/7"}, "imageFile"),
        ({"image": None, "picture": {"path": "a.png"}}, "picture"),
        ({"media": ["https://example.org/a.jpg?size=2"]}, "media"),
        ({"image_id": 4711}, "image_id"),
        ({"film": "clips/a.mov"}, "film"),
        ({"image": "some/a.png", "image_2": "some/b.png"}, "image_2"),
        ({"image": "some/a.png", "images": ["some/b.png"]}, '"image" and "images"'),
        ({"image": "data:image/png;base64,AAAA"}, "bad: not a picture"),
        ({"images": [""]}, "images is not a list of paths"),
        ({"question": "<image>\nwhat is it?"}, "picture of an <image> mark is missing"),
        ({"question": "look at <image 1>"}, "picture of an <image> mark is missing"),
        ({"images": ["some/a.png", "some/b.png"], "question": "is <image> red?"}, "2 pictures, but 1 <image> mark"),
        ({"question": "", "conversations": [{"from": "gpt", "value": "yes"}]}, "do not alternate"),
    ],
)
def test_nothing_is_asked_without_its_picture(vlmkit, folder: Path, row: dict, reported: str) -> None:
    rows = jsonl({"id": "bad", "question": "what is it?"} | row, {"id": "text", "question": "a dog"})
    done = vlmkit("ask", "--max-tokens", 12, stdin=rows, code=3)
    assert [one["id"] for one in records(done.stdout)] == ["text"]
    (line,) = [line for line in done.stderr.decode().splitlines() if "--max-tokens" not in line]
    assert reported in line


@pytest.mark.parametrize(
    "row",
    [
        {"image": "some/a.png", "image_url": "https://example.org/original.jpg", "image_width": 3},
        {"image": {"path": "some/a.png", "bytes": None}},
        {"image": ["some/a.png"]},
        {"image": "some/a.png", "images": []},
        {"image": "", "images": ["some/a.png"], "image_path": "some/a.png"},
    ],
)
def test_pictures_that_other_tools_name(vlmkit, folder: Path, row: dict) -> None:
    plain = vlmkit("ask", "some/a.png", "a dog").stdout.decode().strip()
    (found,) = records(vlmkit("ask", stdin=jsonl({"question": "a dog", "id": ""} | row)).stdout)
    assert found["answer"] == plain and found["id"]


def test_what_a_model_of_single_pictures_does_not_do_is_told(vlmkit, folder: Path) -> None:
    said = [{"from": "human", "value": "<image>a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]
    row = {"id": "1", "images": ["some/a.png", "some/b.png"], "question": "before <image> after <image>"}
    rows = jsonl(row, {"id": "2", "image": "some/a.png", "conversations": said})
    done = vlmkit("ask", "--max-tokens", 12, stdin=rows)
    assert [one["question"] for one in records(done.stdout)] == [row["question"], "c"]
    told = done.stderr.decode()
    assert all(words in told for words in ("single pictures", "before the question", "earlier turns")), told


def test_mini_itself(vlmkit, folder: Path, environment: dict[str, str]) -> None:
    """Where its weights are not shipped it says so in one line."""
    from vlmkit.models.chat.mini import GRAPH
    from vlmkit.models.resolve import MINI_FOLDER

    del environment["VLMKIT_CHAT_MODEL"]
    shipped = (MINI_FOLDER / GRAPH).exists()
    done = vlmkit("ask", folder / "a.png", "what color is it?", code=0 if shipped else 2)
    assert (done.stdout.count(b"\n") == 1) == shipped
    assert shipped or (done.stderr.count(b"\n") == 1 and b"talk.onnx" in done.stderr)
