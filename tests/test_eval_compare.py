"""`vlmkit eval compare`, pages, and what holds for every input."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import jsonl, picture, records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from predictions import answers, by_metric, question, retrieval_rows, write

from vlmkit.eval.compare import parse_weights, score_pairs
from vlmkit.eval.predictions import Options, Source
from vlmkit.eval.registry import evaluate
from vlmkit.eval.results import results


def test_compare_says_which_is_better(vlmkit, tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", *answers(*["red"] * 18, *["blue"] * 6))
    b = write(tmp_path / "b.jsonl", *reversed(answers(*["blue"] * 10, *["red"] * 8, *["blue"] * 6)))
    found = by_metric(vlmkit("eval", "compare", a, b).stdout)["vqa_accuracy"]
    assert found["value"] == pytest.approx(10 / 24) == found["a"] - found["b"]
    assert found["ci95"][0] > 0 and found["p"] < 0.01 and found["better"] == "a"
    assert found["mcnemar"] == pytest.approx(2 / 2**10) and (found["only_a"], found["only_b"]) == (10, 0)
    back = by_metric(vlmkit("eval", "compare", b, a).stdout)["vqa_accuracy"]
    assert back["value"] == -found["value"] and back["better"] == "b"
    assert found["signature"].startswith("compare|vqa:official|n:24|")


def test_compare_as_lmms_eval_and_scipy(vlmkit, shared: Path, tmp_path: Path) -> None:
    golden = json.loads((shared / "golden/stats.json").read_text())
    files = []
    for side in ("a", "b"):
        pairs = zip(golden[side], golden["cluster"], strict=True)
        rows = [{"id": str(i), "score": score, "c": cluster} for i, (score, cluster) in enumerate(pairs)]
        files.append(write(tmp_path / f"{side}.jsonl", *rows))
    found = records(vlmkit("eval", "compare", *files, "--metric", "score").stdout)[0]
    expected = golden["expected"]
    assert found["value"] == pytest.approx(0.15)
    assert found["stderr"] == pytest.approx(expected["paired_ttest_a_minus_b"]["se_diff"])
    assert found["p"] == pytest.approx(0.03125, abs=0.01)
    clustered = records(vlmkit("eval", "compare", *files, "--metric", "score", "--cluster", "c").stdout)[0]
    assert clustered["value"] == found["value"] and clustered["ci95"] != found["ci95"] and "mcnemar" not in clustered


@pytest.mark.parametrize("metric", ["cider", "bleu_4", "rouge_l"])
def test_compare_captions_at_corpus_level(vlmkit, tmp_path: Path, metric: str) -> None:
    words = ["a", "red", "bus", "stands", "in", "the", "wide", "street"]
    good = [" ".join(words[i % 3 : i % 3 + 5]) for i in range(12)]
    files = [
        write(
            tmp_path / f"{i}.jsonl",
            *[
                {"id": str(n), "caption": c, "captions": [g + " now"]}
                for n, (c, g) in enumerate(zip(captions, good, strict=True))
            ],
        )
        for i, captions in enumerate([good, [g.replace("bus", "dog") for g in good]])
    ]
    found = records(vlmkit("eval", "compare", *files, "--metric", metric, "--tokenizer", "py").stdout)[0]
    assert found["value"] > 0 and found["ci95"][0] <= found["value"] <= found["ci95"][1] and found["better"] == "a"


def test_compare_f1_recall_and_classes(vlmkit, tmp_path: Path) -> None:
    for side, wrong in (("a", 1), ("b", 5)):
        rows = [
            {"id": str(i), "label": ["yes", "no"][i % 2], "answer": "no" if i < wrong else "yes"} for i in range(12)
        ]
        write(tmp_path / f"{side}.jsonl", *rows)
        rows = [
            {"id": str(i), "target": "xy"[i % 2], "label": "z" if i < wrong else "xy"[i % 2], "labels": []}
            for i in range(12)
        ]
        write(tmp_path / f"{side}c.jsonl", *rows)
    found = by_metric(vlmkit("eval", "compare", "a.jsonl", "b.jsonl", "--metric", "f1", "--metric", "recall").stdout)
    assert found["recall"]["value"] == pytest.approx(2 / 6) and found["f1"]["ci95"][0] <= found["f1"]["value"]
    found = by_metric(vlmkit("eval", "compare", "ac.jsonl", "bc.jsonl").stdout)
    assert found["mean_per_class"]["value"] == pytest.approx(1 / 3) and found["mean_per_class"]["test"] == "bootstrap"


def test_compare_retrieval(vlmkit, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    noise = random.random((20, 10))
    right = np.repeat(np.arange(10), 2)
    for side, signal in (("a", 1.0), ("b", 0.0)):
        similarity = noise + signal * (right[:, None] == np.arange(10))
        write(tmp_path / f"{side}.jsonl", *retrieval_rows(similarity.tolist(), right.tolist()))
    found = by_metric(vlmkit("eval", "compare", "a.jsonl", "b.jsonl").stdout)
    assert found["text_to_image_recall@1"]["better"] == "a" and found["text_to_image_recall@1"]["n"] == 20
    assert found["text_to_image_median_rank"]["value"] < 0 and found["text_to_image_median_rank"]["better"] == "a"


def test_compare_by_category_with_holm(vlmkit, tmp_path: Path) -> None:
    kinds = ["x", "y"]
    for side, answer in (("a", "red"), ("b", "blue")):
        rows = [question(i, answer if kinds[i % 2] == "x" else "red", category=kinds[i % 2]) for i in range(20)]
        write(tmp_path / f"{side}.jsonl", *rows)
    found = records(vlmkit("eval", "compare", "a.jsonl", "b.jsonl", "--metric", "exact", "--by", "category").stdout)
    p = {record["category"]: (record["p"], record["p_holm"]) for record in found if "category" in record}
    assert p["x"][1] == pytest.approx(2 * p["x"][0], rel=1e-4) and p["y"] == (1, 1)


def test_compare_with_weights(vlmkit, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *answers("red", "red", "blue", "red", latency=2))
    write(tmp_path / "b.jsonl", *answers("red", "blue", "blue", "red", latency=1.0))
    weights = ("--weights", "quality=0.4,latency=0.3,length=0.3")
    found = records(vlmkit("eval", "compare", "a.jsonl", "b.jsonl", *weights).stdout)[-1]
    assert found["metric"] == "weighted" and found["parts"]["latency"] == {"weight": 0.3, "a": 2, "b": 1}
    assert found["a"] == pytest.approx(0.4 + 0.15 + 0.3) and found["b"] == pytest.approx(0.4 * 2 / 3 + 0.6)
    assert found["value"] == pytest.approx(found["a"] - found["b"])
    done = vlmkit("eval", "compare", "a.jsonl", "b.jsonl", *weights, "--latency", "seconds", code=2)
    assert b"q0: the field seconds is not a number" in done.stderr


@pytest.mark.parametrize("text", ["quality=1,speed=0", "quality=0.5", "quality", "quality=2,length=-1"])
def test_wrong_weights(text: str) -> None:
    with pytest.raises(Exception, match="weights"):
        parse_weights(text)


def test_compare_names_what_does_not_match(vlmkit, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *answers("red", "red", "blue"))
    write(tmp_path / "b.jsonl", *answers("red", "red"))
    for order in (("a.jsonl", "b.jsonl"), ("b.jsonl", "a.jsonl")):
        done = vlmkit("eval", "compare", *order, code=2)
        assert done.stdout == b"" and done.stderr.startswith(b"vlmkit: missing in b.jsonl: q2: ")
    write(tmp_path / "b.jsonl", *answers("red", "red", "red"), question(1, "red"))
    assert b"duplicate ids: q1: " in vlmkit("eval", "compare", "a.jsonl", "b.jsonl", code=2).stderr
    write(tmp_path / "b.jsonl", *answers("red", "red", "red", answers=["blue"] * 10))
    assert b"other references in b.jsonl" in vlmkit("eval", "compare", "a.jsonl", "b.jsonl", code=2).stderr


def test_several_files_each_against_the_first(vlmkit, tmp_path: Path) -> None:
    for name, right in (("old", 3), ("new", 5), ("newest", 6)):
        write(tmp_path / f"{name}.jsonl", *answers(*["red"] * right, *["blue"] * (6 - right)))
    files = ("old.jsonl", "new.jsonl", "newest.jsonl")
    done = vlmkit("eval", "compare", *files, "--metric", "exact", "--items", "items.jsonl")
    found = records(done.stdout)
    assert [record["files"] for record in found] == [["old.jsonl", "new.jsonl"], ["old.jsonl", "newest.jsonl"]]
    assert [record["value"] for record in found] == pytest.approx([-2 / 6, -3 / 6])
    alone = vlmkit("eval", "compare", files[0], files[2], "--metric", "exact").stdout
    assert records(alone) == found[1:] and len(records((tmp_path / "items.jsonl").read_bytes())) == 12


# Pages


def test_page_holds_everything(vlmkit, tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png", "blue")
    rows = answers("red", "<script>alert(1)</script>", image=str(image))
    vlmkit("eval", "vqa", "--html", "page.html", "--by", "category", stdin=jsonl(*rows))
    text = (tmp_path / "page.html").read_text()
    assert "data:image/jpeg;base64," in text and "<script>alert" not in text and "://" not in text
    assert text.index("&lt;script&gt;") < text.index(">identical<")  # worst first
    assert '<select name="category">' in text and 'data-category="color"' in text
    write(tmp_path / "a.jsonl", *rows)
    write(tmp_path / "b.jsonl", *answers("blue", "red", image="/gone.png"))
    vlmkit("eval", "compare", "a.jsonl", "b.jsonl", "--html", "flips.html")
    text = (tmp_path / "flips.html").read_text()
    assert 'data-flip="only A right"' in text and 'data-flip="only B right"' in text


def test_page_in_a_browser(vlmkit, tmp_path: Path, browse) -> None:
    """The thumbnails are seen, the filters and the search hide what they should, and nothing is fetched."""
    image = str(picture(tmp_path / "a.png", "blue"))
    rows = [{**question(i, "red", image=image), "category": "color" if i % 2 else "counting"} for i in range(6)]
    vlmkit("eval", "vqa", "--html", "page.html", "--by", "category", stdin=jsonl(*rows))
    look = """
      const shown = () => [...document.querySelectorAll('article')].filter(a => a.offsetHeight > 0).length;
      const [box, words] = [document.querySelector('select[name=category]'), document.querySelector('nav input')];
      const seen = [shown(), [...document.images].every(i => i.naturalWidth > 0)];
      box.value = 'color'; box.onchange(); seen.push(shown());
      words.value = 'q3'; words.oninput(); seen.push(shown(), document.querySelector('output').textContent);
      seen.push(performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length);
      document.title = seen.join();"""
    assert browse(tmp_path / "page.html", look) == "6,true,3,1,1 shown,0"


# Properties

given_answers = st.lists(st.sampled_from(["red", "dark red", "blue", "a red", ""]), min_size=2, max_size=30)
in_tmp_path = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@in_tmp_path
@given(given_answers, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_intervals_hold_their_point(tmp_path: Path, texts: list[str], random) -> None:
    rows = answers(*texts)
    found = []
    for order in (rows, random.sample(rows, len(rows))):
        path = write(tmp_path / "rows.jsonl", *order)
        found.append(list(results(evaluate("vqa", Source(str(path), "rows"), Options(by="category")))))
    for one, two in zip(*found, strict=True):
        assert one["metric"] == two["metric"] and one["value"] == pytest.approx(two["value"])
        assert one["ci95"][0] <= one["value"] <= one["ci95"][1]


@in_tmp_path
@given(given_answers, st.integers(0, 10**6))
def test_duplicates_are_refused(tmp_path: Path, texts: list[str], number: int) -> None:
    rows = answers(*texts)
    path = write(tmp_path / "rows.jsonl", *rows, rows[number % len(rows)])
    with pytest.raises(Exception, match="duplicate ids"):
        evaluate("vqa", Source(str(path), "rows"), Options())


@in_tmp_path
@given(given_answers, st.randoms(use_true_random=False))
def test_a_file_does_not_differ_from_itself(tmp_path: Path, texts: list[str], random) -> None:
    rows = answers(*texts)
    a = write(tmp_path / "a.jsonl", *rows)
    b = write(tmp_path / "b.jsonl", *random.sample(rows, len(rows)))
    (pair,) = score_pairs("vqa", Source(str(a), "a"), [Source(str(b), "b")], Options())
    for ours, theirs in zip(pair.a.metrics, pair.b.metrics, strict=True):
        assert (ours.columns == theirs.columns).all()
