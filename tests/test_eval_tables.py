"""Tables of predictions in `vlmkit eval`: each cell as it stands, none lost."""

import datetime
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import jsonl, records
from predictions import by_metric

HEAD = ["index", "question", "answer", "prediction"]


def exact(output: bytes) -> tuple[int, float, int]:
    (found,) = [r for r in records(output) if r["metric"] == "exact"]
    return found["n"], found["value"], found["unparsed"]


def table(path: Path, *rows: Sequence[object], encoding: str = "utf-8", mark: str = "\t") -> Path:
    path.write_bytes("".join(mark.join(map(str, row)) + "\n" for row in (HEAD, *rows)).encode(encoding))
    return path


def workbook(path: Path, *rows: Sequence[object]) -> Path:
    book = pytest.importorskip("openpyxl").Workbook()
    for row in (HEAD, *rows):
        book.active.append(row)
    book.save(path)
    return path


@pytest.mark.parametrize(("name", "mark"), [("a.tsv", "\t"), ("a.csv", ","), ("b.csv", ";"), ("no-ending", "\t")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_tables(vlmkit, tmp_path: Path, name: str, mark: str, encoding: str) -> None:
    rows = (1, "wo", "Köln", "köln"), (2, "wo", "Rom", ""), ("", "", "", "")
    file = table(tmp_path / name, *rows, encoding=encoding, mark=mark)
    assert exact(vlmkit("eval", "vqa", file).stdout) == (2, 0.5, 1)
    assert vlmkit("eval", "vqa", stdin=file.read_bytes()).stdout == vlmkit("eval", "vqa", file).stdout


def test_nothing_said_is_wrong_in_records_too(vlmkit) -> None:
    rows = jsonl({"id": "1", "answers": ["owl"], "answer": None}, {"id": "2", "answers": ["owl"], "answer": "Owl"})
    assert exact(vlmkit("eval", "vqa", stdin=rows).stdout) == (2, 0.5, 1)


@pytest.mark.parametrize(
    ("answer", "said", "value"),
    [
        ("[10, 20]", "[10, 20]", 1),
        ("[10, 20]", "[10,20]", 1),
        ("[10, 20]", "[20, 10]", 0),
        ("[10, 20]", "10", 0),
        ("['owl', 'bird']", "bird", 1),
        ('["owl", "bird"]', "['owl', 'bird']", 1),
        ("['owl', 'bird']", "['owl', 'cat']", 0),
        ("['owl']", "owl", 1),
        ("[]", "[]", 1),
        ("[not a list]", "[not a list]", 1),
        ("3.0", "3.0", 1),
        ("007", "7", 0),
        ("TRUE", "true", 1),
    ],
)
def test_lists_and_numbers_in_cells(vlmkit, tmp_path: Path, answer: str, said: str, value: int) -> None:
    quoted = [f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in (answer, said)]
    found = exact(vlmkit("eval", "vqa", table(tmp_path / "a.tsv", (1, "q", *quoted))).stdout)
    assert found == (1, value, 0)


def test_lists_in_records(vlmkit) -> None:
    rows = [
        {"id": "1", "answers": [["a", "b"]], "answer": ["a", "b"]},
        {"id": "2", "answers": [1, 2], "answer": [1, 2]},
        {"id": "3", "answers": [1, 2], "answer": [1, 3]},
        {"id": "4", "answers": [True], "answer": "True"},
    ]
    assert exact(vlmkit("eval", "vqa", stdin=jsonl(*rows)).stdout) == (4, 0.75, 0)


def test_long_answers_are_no_pictures(vlmkit, tmp_path: Path) -> None:
    long, picture = "長い答え。" * 500, "iVBORw0KGgo" * 500
    rows = [["index", "image", "question", "answer", "prediction"], ["1", picture, "q", long, long]]
    (tmp_path / "a.tsv").write_text("\n".join(map("\t".join, rows)))
    assert exact(vlmkit("eval", "vqa", "a.tsv", "--items", "items.jsonl").stdout) == (1, 1, 0)
    assert picture.encode() not in (tmp_path / "items.jsonl").read_bytes()


def test_cells_of_a_workbook(vlmkit, tmp_path: Path) -> None:
    day = datetime.datetime(2024, 3, 1)
    rows = [(1, "q", False, "FALSE"), (2, "q", "-7", "=-7"), (3, "q", 4, 4.0), (4, "q", day, "2024-03-01")]
    rows += [(5, "q", datetime.time(9, 30), datetime.time(9, 30)), (6, "q", True, False), (7, "q", "x", None)]
    file = workbook(tmp_path / "a.xlsx", *rows)
    assert exact(vlmkit("eval", "vqa", file, "--items", "items.jsonl").stdout) == (7, pytest.approx(5 / 7), 1)
    said = [item["prediction"] for item in records((tmp_path / "items.jsonl").read_bytes())]
    assert said == ["FALSE", "=-7", "4", "2024-03-01", "09:30:00", "false", ""]


def test_other_sheets_are_told(vlmkit, tmp_path: Path) -> None:
    book = pytest.importorskip("openpyxl").Workbook()
    for row in (HEAD, [1, "q", "a", "a"]):
        book.active.append(row)
    book.create_sheet("more").append(HEAD)
    book.save(tmp_path / "a.xlsx")
    assert b"only the first of 2 sheets is read" in vlmkit("eval", "vqa", "a.xlsx").stderr


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("id\tanswer\n1\tcat\n", "no prediction (field prediction) in 1"),
        ("id\tanswer\tprediction\n1\t\tcat\n", "no references in 1"),
        ("id\tanswer\tprediction\n1\tcat\tcat\tor dog\n", "a.tsv:2: 4 cells for 3 columns"),
        ('id\tanswer\tprediction\n1\tcat\t"cat" is it\n', "a.tsv:2: "),
        ('id\tanswer\tprediction\n1\tcat\t"cat\n2\tcat\tcat\n', "a.tsv:"),
        ("id\tprediction\tprediction\n1\tcat\tdog\n", "a.tsv has two columns prediction"),
        (b"id\tanswer\tprediction\n1\tK\xf6ln\tx\n", "save it as UTF-8"),
        (b"PK\x03\x04 cut", "not an xlsx file"),
    ],
)
def test_what_would_lose_something_is_refused(vlmkit, tmp_path: Path, text: str | bytes, reason: str) -> None:
    (tmp_path / "a.tsv").write_bytes(text if isinstance(text, bytes) else text.encode())
    done = vlmkit("eval", "vqa", "a.tsv", code=2)
    assert reason in done.stderr.decode() and done.stderr.count(b"\n") == 1 and not done.stdout


@pytest.mark.parametrize("task", ["vqa", "anls", "chartqa", "pope", "classify", "caption", "choice"])
def test_every_task_counts_unparsed_answers(vlmkit, task: str) -> None:
    fields = {"caption": "caption", "classify": "label"}
    said = {"pope": ["yes", "perhaps"], "choice": ["A", "dunno"]}.get(task, ["yes", ""])
    truth = {"captions": ["yes"]} if task == "caption" else {"target": "A" if task == "choice" else "yes"}
    rows = [
        {"id": str(i), "options": ["x", "y"], fields.get(task, "answer"): text, **truth} for i, text in enumerate(said)
    ]
    named = ("--metric", "rouge_l", "--tokenizer", "py") if task == "caption" else ()
    found = by_metric(vlmkit("eval", task, *named, stdin=jsonl(*rows)).stdout)
    assert {record["unparsed"] for name, record in found.items() if name != "confusion"} == {1}


def test_own_labels_beside_predicted_ones(vlmkit) -> None:
    rows = [{"id": "1", "label": "owl", "predicted": "owl"}, {"id": "2", "label": "owl", "predicted": "cat"}]
    found = by_metric(vlmkit("eval", "classify", stdin=jsonl(*rows)).stdout)
    assert found["acc@1"]["value"] == 0.5
    assert b"no references in 1" in vlmkit("eval", "classify", stdin=jsonl({"id": "1", "label": "x"}), code=2).stderr


def test_an_answer_beside_answers_is_the_prediction(vlmkit, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,answers,answer\n1,cat,cat\n2,dog,cat\n")
    assert by_metric(vlmkit("eval", "vqa", "a.csv").stdout)["exact"]["value"] == 0.5
