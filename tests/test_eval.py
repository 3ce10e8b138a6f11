"""`vlmkit eval` as a person uses it: files of several tools in, figures with intervals and signatures out."""

import csv
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import jsonl, records
from predictions import TEN, by_metric, question, retrieval_rows, write

from vlmkit import __version__
from vlmkit.eval.task import guess_category
from vlmkit.metrics.tokens import java_missing

needs_java = pytest.mark.skipif(java_missing() is not None, reason=str(java_missing()))


# vqa


def test_vqa_figures_and_signature(vlmkit, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *[question(i, a) for i, a in enumerate(["red", "dark red", "blue", ""])])
    found = by_metric(vlmkit("eval", "vqa", file).stdout)
    assert set(found) == {"vqa_accuracy", "exact", "relaxed", "confidence"}
    assert [found[m]["value"] for m in found] == pytest.approx([(1 + 0.9) / 4, 0.5, 0.5, 0.5])
    one = found["vqa_accuracy"]
    assert one["n"] == 4 and one["unparsed"] == 1 and one["ci95"][0] <= one["value"] <= one["ci95"][1]
    assert one["stderr"] == pytest.approx(np.std([1, 0.9, 0, 0], ddof=1) / 2)
    sha = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    assert one["signature"].startswith("vqa:official|n:4|refs:10|skipped:0|")
    assert f"|sha:{sha}|" in one["signature"] and one["signature"].endswith(f"|vlmkit:{__version__}")
    assert vlmkit("eval", "vqa", stdin=file.read_bytes()).stdout == vlmkit("eval", "vqa", file).stdout


def test_vqa_as_the_official_script(vlmkit, shared: Path) -> None:
    cases = json.loads((shared / "golden/vqa_accuracy.json").read_text())["cases"]
    rows = jsonl(*[{**c, "answer": c["prediction"]} for c in cases])
    for variant, column in (
        ("official", "expected_percent"),
        ("always", "lmms_eval_vqav2"),
        ("textvqa", "mmf_textvqa"),
    ):
        done = vlmkit("eval", "vqa", "--variant", variant, "--id", "question_id", "--by", "answer_type", stdin=rows)
        expected = sum(case[column] for case in cases) / len(cases) / 100
        assert by_metric(done.stdout)["vqa_accuracy"]["value"] == pytest.approx(expected)
        kinds = {
            r["category"]: r["value"] for r in records(done.stdout) if r["metric"] == "vqa_accuracy" and "category" in r
        }
        numbers = [case[column] / 100 for case in cases if case["answer_type"] == "number"]
        assert kinds["number"] == pytest.approx(sum(numbers) / len(numbers))


def test_one_reference_gives_exact_and_relaxed_alone(vlmkit) -> None:
    rows = [
        {"id": str(i), "answers": ["red"], "answer": a} for i, a in enumerate(["Red.", "a red car", "blue", "snow"])
    ]
    found = by_metric(vlmkit("eval", "vqa", stdin=jsonl(*rows)).stdout)
    assert {name: record["value"] for name, record in found.items()} == {"exact": 0.25, "relaxed": 0.5}
    assert all("|refs:1|" in record["signature"] for record in found.values())
    mixed = by_metric(vlmkit("eval", "vqa", stdin=jsonl(*rows, question(9, "red"))).stdout)
    assert mixed["vqa_accuracy"]["n"] == 1 and "|refs:1-10|skipped:4|" in mixed["vqa_accuracy"]["signature"]
    assert mixed["exact"]["n"] == 5 and "|skipped:0|" in mixed["exact"]["signature"]


def test_several_questions_about_one_picture_need_no_ids(vlmkit) -> None:
    rows = [{"image": "a.jpg", "question": f"{what}?", "answers": ["red"], "answer": "red"} for what in ("a", "b")]
    assert by_metric(vlmkit("eval", "vqa", stdin=jsonl(*rows)).stdout)["exact"]["n"] == 2
    reported = vlmkit("eval", "vqa", stdin=jsonl(rows[0], rows[0]), code=2).stderr.decode()
    assert re.search(r"duplicate ids: \S*a\.jpg: a\?", reported)


@pytest.mark.parametrize("flag", ["--items", "--html"])
def test_no_input_is_written_over(vlmkit, tmp_path: Path, flag: str) -> None:
    file = write(tmp_path / "a.jsonl", question(1, "red"))
    before = file.read_bytes()
    done = vlmkit("eval", "vqa", "a.jsonl", flag, "./a.jsonl", code=2)
    assert done.stderr == b"vlmkit: ./a.jsonl is an input, too: name another file\n"
    assert file.read_bytes() == before


def test_categories_hardest_first_with_confusions(vlmkit) -> None:
    rows = [question(i, "red", category="easy") for i in range(3)]
    rows += [question(i, "blue", category="hard") for i in range(3, 6)] + [question(6, "blue")]
    found = records(vlmkit("eval", "vqa", "--by", "category", stdin=jsonl(*rows)).stdout)
    categories = list(dict.fromkeys(record["category"] for record in found if "category" in record))
    assert categories == ["color", "hard", "easy"]
    assert {record.get("guessed") for record in found if record.get("category") == "color"} == {1}
    assert not any("guessed" in record for record in found if record.get("category") == "hard")
    assert found[-1] | {"signature": ""} == {
        "metric": "confusion", "value": 4, "n": 7, "stderr": None, "ci95": None, "signature": "", "wanted": "red",
        "answered": "blue",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("question", "category"),
    [
        ("How many dogs are there?", "counting"),
        ("Is the car red?", "yes-no"),
        ("What color is the left car?", "color"),
        ("what is written on the wall", "reading"),
        ("Where is the cat?", "spatial"),
        ("what is to the left of the bed", "spatial"),
        ("what is this", "other"),
    ],
)
def test_categories_are_guessed_from_the_question(question: str, category: str) -> None:
    assert guess_category(question) == category


def test_items_say_what_was_compared_and_which_rule_decided(vlmkit, tmp_path: Path) -> None:
    answers = ["red", "The red!", "a red car", "dark", "", "blue"]
    rows = [question(i, a) for i, a in enumerate(answers)]
    vlmkit("eval", "vqa", "--items", "items.jsonl", stdin=jsonl(*rows))
    items = records((tmp_path / "items.jsonl").read_bytes())
    rules = ["identical", "normalized", "holds a reference", "held by a reference", "empty", "none"]
    assert [item["rule"] for item in items] == rules and [item["id"] for item in items] == [r["id"] for r in rows]
    assert items[1]["compared"] == {"prediction": "red", "references": ["dark red", "red"]}
    assert items[1]["vqa_accuracy"] == 1


# Other tools' files


def test_vqa_results_with_their_annotations(vlmkit, tmp_path: Path) -> None:
    results = [{"question_id": i, "answer": a} for i, a in enumerate(["red", "blue"])]
    (tmp_path / "results.json").write_text(json.dumps(results))
    truth = [
        {"question_id": i, "image_id": 7, "answers": [{"answer": a, "answer_id": n} for n, a in enumerate(TEN)]}
        for i in range(2)
    ]
    (tmp_path / "annotations.json").write_text(json.dumps({"info": {}, "annotations": truth}))
    done = vlmkit("eval", "vqa", "results.json", "--truth", "annotations.json")
    assert by_metric(done.stdout)["vqa_accuracy"]["value"] == 0.5
    (tmp_path / "results.json").write_text(json.dumps(results[:1]))
    done = vlmkit("eval", "vqa", "results.json", "--truth", "annotations.json", code=2)
    assert b"no prediction for 1 of annotations.json" in done.stderr


def test_coco_results_with_their_annotations(vlmkit, tmp_path: Path) -> None:
    results = [{"image_id": 4, "caption": "a red bus"}, {"image_id": 5, "caption": "two dogs"}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    truth = [(4, "A red bus."), (5, "Two dogs play."), (4, "The bus is red.")]
    annotations = [{"id": n, "image_id": i, "caption": caption} for n, (i, caption) in enumerate(truth)]
    (tmp_path / "annotations.json").write_text(json.dumps({"images": [], "annotations": annotations}))
    done = vlmkit("eval", "caption", "results.json", "--truth", "annotations.json", "--tokenizer", "py")
    found = by_metric(done.stdout)
    assert found["bleu_1"]["value"] > 0.7 and "|tok:py|" in found["cider"]["signature"] and "meteor" not in found
    assert "|refs:1-2|" in found["rouge_l"]["signature"]


def test_lmms_eval_samples(vlmkit) -> None:
    rows = [
        {
            "doc_id": i,
            "doc": {"question": "is it", "answers": TEN},
            "target": "red",
            "filtered_resps": [a],
            "resps": [[a]],
        }
        for i, a in enumerate(["red", "no"])
    ]
    assert by_metric(vlmkit("eval", "vqa", stdin=jsonl(*rows)).stdout)["vqa_accuracy"]["value"] == 0.5
    named = ("--id", "doc_id", "--prediction", "resps.0.0", "--references", "target")
    assert by_metric(vlmkit("eval", "vqa", *named, stdin=jsonl(*rows)).stdout)["exact"]["value"] == 0.5


@pytest.mark.parametrize("form", ["tsv", "xlsx"])
def test_vlmevalkit_tables(vlmkit, tmp_path: Path, form: str) -> None:
    rows = [["index", "image", "question", "answer", "category", "prediction"]]
    rows += [
        [1, "A" * 5000, "how many", "2", "count", "2"],
        [2, "A" * 5000, "who", "['a man', 'man']", "person", "dog"],
    ]
    file = tmp_path / f"table.{form}"
    if form == "tsv":
        with file.open("w", newline="") as out:
            csv.writer(out, delimiter="\t").writerows(rows)
    else:
        book = pytest.importorskip("openpyxl").Workbook()
        for row in rows:
            book.active.append(row)
        book.save(file)
    found = records(vlmkit("eval", "vqa", file, "--by", "category", "--items", "items.jsonl").stdout)
    assert {r["category"]: r["value"] for r in found if r["metric"] == "exact" and "category" in r} == {
        "count": 1,
        "person": 0,
    }
    assert [item["id"] for item in records((tmp_path / "items.jsonl").read_bytes())] == ["1", "2"]


# Captions


def test_caption_figures(vlmkit) -> None:
    reported = [
        ("a", "a red bus", ["A red bus."]),
        ("b", "two dogs", ["Two dogs play."]),
        ("c", "a red bus", ["A cat."]),
    ]
    rows = jsonl(*[{"id": i, "caption": c, "captions": r} for i, c, r in reported])
    found = by_metric(vlmkit("eval", "caption", "--tokenizer", "py", stdin=rows).stdout)
    names = ["cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "length", "vocabulary", "repeated"]
    assert list(found) == names
    assert found["vocabulary"]["value"] == 5 and found["repeated"]["value"] == pytest.approx(2 / 3)
    assert found["length"]["value"] == pytest.approx(8 / 3) and found["vocabulary"]["ci95"] is None


@pytest.mark.slow
@needs_java
def test_captions_as_the_official_code(vlmkit, shared: Path) -> None:
    case = json.loads((shared / "golden/caption_metrics.json").read_text())["cases"]["six_images_ptb"]
    rows = jsonl(*[{"id": i, "caption": case["hyps"][i], "captions": case["refs"][i]} for i in case["ids"]])
    found = by_metric(vlmkit("eval", "caption", stdin=rows).stdout)
    for name, value in case["corpus"].items():
        assert found[name.lower()]["value"] == pytest.approx(value, abs=1e-6)
        assert found[name.lower()]["ci95"][0] <= value <= found[name.lower()]["ci95"][1]
        assert "|tok:ptb|" in found[name.lower()]["signature"]


@pytest.mark.slow
def test_line_breaks_in_captions_shift_nothing(vlmkit) -> None:
    references = [["a cat dog"], ["two birds"], ["a bus"]]
    plain = ["a cat dog", "two birds", "a bus"]
    named = ("--metric", "cider")  # by the tokenizer of Java
    scores = []
    for captions in (plain, ["a cat\r dog", "two\u2028birds", "a\x0b bus"]):
        rows = [
            {"id": str(i), "caption": c, "captions": r}
            for i, (c, r) in enumerate(zip(captions, references, strict=True))
        ]
        scores.append([r["value"] for r in records(vlmkit("eval", "caption", *named, stdin=jsonl(*rows)).stdout)])
    assert scores[0] == scores[1]


def test_clipscore_with_mini(vlmkit, photos: Path) -> None:
    reported = {"coffee": "a cup of coffee on a table", "chelsea": "a cat looks at the camera"}
    wrong = dict(zip(reported, reversed(reported.values()), strict=True))
    found = []
    for captions in (reported, wrong):
        rows = [
            {"image": str(photos / f"{n}.png"), "caption": c, "captions": [reported[n]]} for n, c in captions.items()
        ]
        named = ("--tokenizer", "py", "--metric", "clipscore", "--metric", "refclipscore")
        found.append(by_metric(vlmkit("eval", "caption", "-m", "mini", *named, stdin=jsonl(*rows)).stdout))
    assert all(found[0][name]["value"] > found[1][name]["value"] for name in ("clipscore", "refclipscore"))
    assert "model:mini@" in found[0]["clipscore"]["signature"]


# Retrieval


def test_retrieval_as_clip_benchmark_and_vsepp(vlmkit, shared: Path) -> None:
    for case in json.loads((shared / "golden/retrieval.json").read_text())["retrieval_cases"][:2]:
        rows = retrieval_rows(case["scores_text_by_image"], case["text_to_image_index"])
        found = by_metric(vlmkit("eval", "retrieval", stdin=jsonl(*rows)).stdout)
        for way in ("text_to_image", "image_to_text"):
            expected = case["vsepp"][way]
            for k in (1, 5, 10):
                assert found[f"{way}_recall@{k}"]["value"] == pytest.approx(expected[f"R@{k}"] / 100)
            assert found[f"{way}_median_rank"]["value"] == expected["medr"]
            assert found[f"{way}_mean_rank"]["value"] == pytest.approx(expected["meanr"])
            assert found[f"{way}_mrr"]["value"] == pytest.approx(case["mrr"][way])


def test_retrieval_counts_ties_against_the_model(vlmkit) -> None:
    rows = retrieval_rows([[0.5, 0.5], [0.5, 0.5]], [0, 1])
    found = by_metric(vlmkit("eval", "retrieval", "-k", "1,2", stdin=jsonl(*rows)).stdout)
    assert found["text_to_image_recall@1"]["value"] == 0 and found["text_to_image_recall@2"]["value"] == 1
    assert found["text_to_image_ties"]["value"] == 1 and "|ties:against|" in found["text_to_image_ties"]["signature"]


def test_retrieval_with_captions_as_records_of_their_own(vlmkit) -> None:
    rows = [
        {"id": "/a.png", "image": "/a.png", "embedding": [1, 0]},
        {"id": "/b.png", "image": "/b.png", "embedding": [0, 1]},
        {"id": "1", "image": "/a.png", "text": "first", "embedding": [0.9, 0.1]},
        {"id": "2", "image": "/b.png", "text": "second", "embedding": [0.8, 0.2]},
    ]
    found = by_metric(vlmkit("eval", "retrieval", "-k", "1", stdin=jsonl(*rows)).stdout)
    assert found["text_to_image_recall@1"]["value"] == 0.5 and found["image_to_text_recall@1"]["value"] == 1


@pytest.mark.slow
def test_retrieval_on_flickr8k_with_mini(shell, shared: Path) -> None:
    line = f"vlmkit embed {shared}/data/flickr8k/dev-000.tar | head -n 200 | vlmkit eval retrieval"
    found = by_metric(shell(line.replace(" | head", " 2>/dev/null | head")).stdout)
    assert found["text_to_image_recall@10"]["n"] == 1000
    assert found["text_to_image_recall@10"]["value"] > 0.5 > found["text_to_image_recall@1"]["value"]
    assert "model:mini@" in found["text_to_image_recall@10"]["signature"]


# classify, pope, anls, chartqa


def test_classify(vlmkit) -> None:
    labels = ["cat", "dog", "bus", "car", "bird", "tree"]
    reported = [("cat", "cat"), ("cat", "dog"), ("cat", "cat"), ("tree", "cat")]
    rows = [
        {
            "id": str(i),
            "target": t,
            "label": p,
            "labels": [{"label": p, "score": 1}] + [{"label": n} for n in labels if n != p],
        }
        for i, (t, p) in enumerate(reported)
    ]
    found = records(vlmkit("eval", "classify", stdin=jsonl(*rows)).stdout)
    values = {record["metric"]: record["value"] for record in found if record["metric"] != "confusion"}
    assert values == {"acc@1": 0.5, "acc@5": 0.75, "mean_per_class": pytest.approx(1 / 3), "unparsed": 0}
    assert [(r["wanted"], r["answered"]) for r in found if r["metric"] == "confusion"] == [
        ("cat", "dog"),
        ("tree", "cat"),
    ]


def test_pope(vlmkit, shared: Path) -> None:
    corpus = json.loads((shared / "golden/pope.json").read_text())["corpus"]
    pairs = zip(corpus["labels"], corpus["answers"], strict=True)
    rows = jsonl(*[{"question_id": i, "label": label, "answer": answer} for i, (label, answer) in enumerate(pairs)])
    found = by_metric(vlmkit("eval", "pope", stdin=rows).stdout)
    expected = {"accuracy": 0.6, "precision": 0.5, "recall": 0.75, "f1": 0.6, "yes_ratio": 0.6, "unparsed": 2}
    assert {name: record["value"] for name, record in found.items()} == pytest.approx(expected)
    strict = by_metric(vlmkit("eval", "pope", "--variant", "strict", stdin=rows).stdout)
    assert strict["accuracy"]["value"] == 0.5 and "pope:strict" in strict["accuracy"]["signature"]


def test_pope_files_as_they_are(vlmkit, tmp_path: Path) -> None:
    """Several questions of one picture: question_id is the key, not the picture."""
    asked = [
        {"question_id": i, "image": "a.jpg", "text": f"Is there a {n}?", "label": "yes"} for i, n in enumerate("xy")
    ]
    write(tmp_path / "coco_pope_random.json", *asked)
    answered = [{"question_id": i, "question": f"Is there a {n}?", "answer": "Yes"} for i, n in enumerate("xy")]
    done = vlmkit("eval", "pope", "--truth", "coco_pope_random.json", stdin=jsonl(*answered))
    assert by_metric(done.stdout)["recall"]["value"] == 1


def test_pope_without_a_yes(vlmkit) -> None:
    rows = jsonl(*[{"id": str(i), "label": "no", "answer": "No."} for i in range(3)])
    found = by_metric(vlmkit("eval", "pope", stdin=rows).stdout)
    assert found["accuracy"]["value"] == 1 and found["precision"]["value"] is None


@pytest.mark.parametrize(("task", "values"), [("anls", [0.5, 0]), ("chartqa", [0.5])])
def test_short_answers(vlmkit, task: str, values: list[float]) -> None:
    rows = jsonl(
        {"id": "1", "answer": "103", "answers": ["103", "about 100"]}, {"id": "2", "answer": "none", "answers": ["100"]}
    )
    found = by_metric(vlmkit("eval", task, stdin=rows).stdout)
    assert next(iter(found.values()))["value"] == values[0]
    assert found["unparsed"]["value"] == (1 if task == "chartqa" else 0)


# Refusals


@pytest.mark.parametrize(
    ("task", "rows", "reason"),
    [
        ("caption", [{"id": "1", "caption": "a", "captions": ["a"]}], "CIDEr of a single image"),
        ("vqa", [{"id": "1", "answer": "red"}, {"id": "2", "answer": "x"}], "no references in 1, 2: .*--references"),
        ("vqa", [{"id": "1", "answers": TEN}], r"no prediction \(field answer\) in 1: .*--prediction"),
        ("vqa", [question(1, "red"), question(1, "red")], "duplicate ids: q1: .*--id"),
        ("vqa", [{"id": 1, "answer": float("nan"), "answers": TEN}], "-:1: not JSON"),
        ("pope", [{"id": "1", "answer": "yes", "label": "perhaps"}], "'perhaps' is neither yes nor no"),
        ("retrieval", retrieval_rows([[0.9, 0.1], [0.1, 0.9]], [0, 1]), "k = 5 of 2 candidates"),
        ("retrieval", [{"id": "1", "embedding": [1, 0]}], "no captions of 1"),
        ("retrieval", [{"id": "1", "captions": ["a"], "embedding": [0, 0], "caption_embeddings": [[1, 0]]}], "zero"),
    ],
)  # fmt: skip
def test_refusals_are_one_line(vlmkit, task: str, rows: list[dict], reason: str) -> None:
    done = vlmkit("eval", task, "--items", "items.jsonl", stdin=jsonl(*rows), code=2)
    assert done.stdout == b"" and done.stderr.count(b"\n") == 1
    assert re.search(reason, done.stderr.decode()), done.stderr
    assert not Path("items.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["vqa", "--variant", "rrc"], "unknown variant rrc"),
        (["vqa", "--metric", "cider"], "no metric cider of vqa"),
        (["vqa", "--by", "nothing"], "no item has a field nothing"),
        (["vqa", "--cluster", "nothing"], "q1 has no field nothing"),
        (["vqa", "--truth", "nothing.json"], "nothing.json: no such file"),
        (["vqa", "--id", "nothing"], "item 1 has no field nothing"),
        (["retrieval", "-k", "one"], "-k one: not numbers"),
        (["compare", "-"], "compare does not take 1 files"),
    ],
)
def test_wrong_options(vlmkit, arguments: list[str], reason: str) -> None:
    done = vlmkit("eval", *arguments, stdin=jsonl(question(1, "red")), code=2)
    assert reason in done.stderr.decode() and done.stderr.count(b"\n") == 1


def test_empty_input_is_no_error(vlmkit) -> None:
    for task in ("vqa", "caption", "retrieval", "classify", "pope", "anls", "chartqa"):
        assert vlmkit("eval", task).stdout == b""


def test_scoring_loads_no_model(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", question(1, "red"), question(2, "red"))
    code = (
        "import sys; from vlmkit.cli.app import main; assert main(sys.argv[1:]) == 0;"
        "assert not {'torch', 'transformers', 'onnxruntime', 'PIL'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, "eval", "vqa", str(file)], capture_output=True).returncode == 0
