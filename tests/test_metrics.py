"""Metrics against the official codes' results, as far as they are beside the project, and against sums done by hand."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmkit import metrics
from vlmkit.errors import VlmkitError
from vlmkit.metrics import captions, meteor, stats, tokens, vqa

needs_java = pytest.mark.skipif(tokens.java_missing() is not None, reason=str(tokens.java_missing()))
unhurried = settings(deadline=None)
numbers = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=2, max_size=40)


@pytest.fixture(scope="module")
def golden(shared: Path):
    return lambda name: json.loads((shared / "golden" / f"{name}.json").read_text())


def test_importing_is_light() -> None:
    heavy = {"numpy", "torch", "rapidfuzz", "pycocoevalcap", "transformers"}
    code = f"import sys, vlmkit.metrics; sys.exit(len({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# VQA


def test_vqa_tables(golden) -> None:
    tables = golden("vqa_tables")
    assert tables["contractions"] == vqa.contractions() and tables["number_words"] == vqa.NUMBER_WORDS
    assert set(tables["articles"]) == vqa.ARTICLES and tables["punctuation"] == list(vqa.PUNCTUATION)


def test_vqa_normalize_as_the_official_codes(golden) -> None:
    for case in golden("vqa_normalise")["cases"]:
        assert metrics.vqa_normalize(case["input"]) == case["expected"]
        assert metrics.vqa_normalize(case["input"], "always") == case["lmms_vqav2"]
        assert metrics.vqa_normalize(case["input"], "textvqa") == case["mmf_textvqa"]


def test_vqa_accuracy_as_the_official_codes(golden) -> None:
    columns = {"official": "expected_percent", "always": "lmms_eval_vqav2", "textvqa": "mmf_textvqa"}
    for case in golden("vqa_accuracy")["cases"]:
        for variant, column in columns.items():
            found = metrics.vqa_accuracy(case["prediction"], case["answers"], variant)
            assert round(100 * found, 2) == case[column], (case, variant)


@pytest.mark.parametrize(
    ("answer", "official", "textvqa"),
    [
        ("The Dogs, two!", "dogs 2", "dogs 2"),
        ("red,blue", "red blue", "redblue"),
        ("1,000-2,000", "10002000", "1000 2000"),
        ("it's 3.", "it's 3", "it 's 3"),
        ("isnt\n3.5", "isn't 3.5", "isn't 3.5"),
        ("a", "", ""),
    ],
)
def test_vqa_normalize(answer: str, official: str, textvqa: str) -> None:
    assert metrics.vqa_normalize(answer) == official
    assert metrics.vqa_normalize(answer, "textvqa") == textvqa


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_by_number_of_matches(matches: int, expected: float) -> None:
    assert metrics.vqa_accuracy("red", ["red"] * matches + ["blue"] * (10 - matches)) == pytest.approx(expected)


def test_vqa_accuracy_normalizes_only_where_references_differ() -> None:
    assert metrics.vqa_accuracy("yes.", ["yes"] * 10) == 0
    assert metrics.vqa_accuracy("yes.", ["yes"] * 10, "always") == 1
    assert metrics.vqa_accuracy("yes.", ["yes"] * 9 + ["no"]) == 1


def test_vqa_refusals() -> None:
    with pytest.raises(ValueError, match="two references"):
        metrics.vqa_accuracy("red", ["red"])
    with pytest.raises(VlmkitError, match="unknown variant"):
        metrics.vqa_normalize("red", "nothing")


# Short answers


def test_anls_as_the_official_codes(golden) -> None:
    for case in golden("anls")["cases"]:
        for variant, column in (("rrc", "rrc_script"), ("paper", "paper_eq")):
            assert metrics.anls(case["prediction"], case["references"], variant) == pytest.approx(case[column])
    for name, published in golden("anls")["rrc_published"].items():
        found = metrics.anls(name, ["Coca Cola", "Coca Cola Company"])
        assert found == pytest.approx(published, abs=0.005)


def test_anls_at_the_threshold_and_with_raw_lengths() -> None:
    assert metrics.anls("abcd", ["abxy"]) == 0.5 and metrics.anls("abcd", ["abxy"], "paper") == 0
    assert metrics.anls("abc          ", ["abd"]) == pytest.approx(12 / 13)
    assert metrics.anls("abc          ", ["abd"], "paper") == pytest.approx(2 / 3)
    assert metrics.anls("nothing", ["else", "Nothing "]) == 1


def test_relaxed_accuracy_as_pix2struct(golden) -> None:
    for case in golden("chartqa_relaxed")["cases"]:
        assert metrics.relaxed_accuracy(case["prediction"], case["target"]) is case["expected"], case


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [("105", "100", True), ("106", "100", False), ("100%", "0.96", True), ("0.1", "0", False), ("Yes", "yes", True)],
)
def test_relaxed_accuracy(prediction: str, target: str, expected: bool) -> None:
    assert metrics.relaxed_accuracy(prediction, target) is expected


def test_pope_as_the_official_code(golden) -> None:
    found = golden("pope")
    for case in found["extraction_cases"]:
        assert metrics.pope_label(case["answer"]) == case["expected"], case
    corpus, expected = found["corpus"], found["corpus"]["expected"]
    scores = metrics.pope(corpus["labels"], corpus["answers"])
    assert scores == pytest.approx({k: expected.get(k, expected["acc"]) for k in scores})
    published = found["published_confusion"]
    labels = ["yes"] * (published["TP"] + published["FN"]) + ["no"] * (published["FP"] + published["TN"])
    answers = (
        ["Yes"] * published["TP"] + ["No"] * published["FN"] + ["Yes"] * published["FP"] + ["No"] * published["TN"]
    )
    scores = metrics.pope(labels, answers)
    assert scores["yes_ratio"] == pytest.approx(published["expected"].pop("yes_ratio_computed"))
    assert scores == pytest.approx(published["expected"] | {"yes_ratio": scores["yes_ratio"]})


def test_pope_without_a_yes() -> None:
    scores = metrics.pope(["no", "no"], ["No.", "not there"])
    assert scores == {"accuracy": 1, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}
    with pytest.raises(ValueError, match="neither yes nor no"):
        metrics.pope(["maybe"], ["No"])


# Retrieval


def test_recall_as_clip_benchmark(golden) -> None:
    for case in golden("retrieval")["retrieval_cases"]:
        similarity = np.array(case["scores_text_by_image"])
        positives = np.array(case["text_to_image_index"])[:, None] == np.arange(similarity.shape[1])
        for name, expected in case["clip_benchmark"].items():
            way, k = name.split("_retrieval_recall@")
            turned = (similarity, positives) if way == "image" else (similarity.T, positives.T)
            if case["name"] == "all_tied":
                expected = float(int(k) == turned[0].shape[1])  # ours counts ties against the model
            assert metrics.recall_at_k(*turned, int(k)) == pytest.approx(expected, abs=1e-6)


def test_recall_refusals() -> None:
    similarity, positives = np.eye(3), np.eye(3, dtype=bool)
    assert metrics.recall_at_k(similarity, positives, 1) == 1
    assert metrics.recall_at_k(np.ones((3, 3)), positives, 1) == 0
    for arguments in [
        (similarity, positives, 4),
        (similarity, positives, 0),
        (similarity * np.nan, positives, 1),
        (similarity, np.zeros((3, 3), bool), 1),
        (similarity, positives[:2], 1),
    ]:
        with pytest.raises(ValueError):
            metrics.recall_at_k(*arguments)


# Captions


def _pairs(case: dict) -> tuple[list[str], list[list[str]]]:
    return [case["hyps"][i] for i in case["ids"]], [case["refs"][i] for i in case["ids"]]


def _assert_scores(case: dict, hypotheses: list, references: list, tokenize: str | None) -> None:
    found = {
        **_by_n(metrics.bleu(hypotheses, references, tokenize)),
        "ROUGE_L": metrics.rouge_l(hypotheses, references, tokenize),
        "CIDEr": metrics.cider(hypotheses, references, tokenize),
    }
    for name, scores in found.items():
        assert scores["corpus"] == pytest.approx(case["corpus"][name], abs=1e-9), name
        expected = [case["per_image"][i][name] for i in case["ids"]]
        assert scores["items"] == pytest.approx(expected, abs=1e-9), name


def _by_n(scores: dict) -> dict[str, dict]:
    """The four BLEU scores in the form that the other metrics have."""
    corpus, items = scores["corpus"], scores["items"]
    return {f"Bleu_{n + 1}": {"corpus": corpus[n], "items": [item[n] for item in items]} for n in range(4)}


def test_captions_as_the_official_code_from_its_tokens(golden) -> None:
    for case in golden("caption_metrics")["cases"].values():
        words = [case["tokenised_hyps"][i] for i in case["ids"]], [case["tokenised_refs"][i] for i in case["ids"]]
        _assert_scores(case, *words, None)


@pytest.mark.slow
@needs_java
def test_captions_as_the_official_code(golden) -> None:
    for case in golden("caption_metrics")["cases"].values():
        _assert_scores(case, *_pairs(case), "ptb" if case["tokenise_ptb"] else None)


@needs_java
def test_tokenizers(golden) -> None:
    for case in golden("caption_metrics")["cases"].values():
        expected = [case["tokenised_hyps"][i] for i in case["ids"]], [case["tokenised_refs"][i] for i in case["ids"]]
        if case["tokenise_ptb"]:
            assert tokens.tokenized(*_pairs(case), "ptb") == expected
            assert tokens.tokenized(*_pairs(case), "py") == expected


@pytest.mark.slow
@needs_java
def test_meteor_as_the_official_code(golden) -> None:
    cases = list(golden("caption_metrics")["cases"].values())
    words = [(case["tokenised_hyps"][i], case["tokenised_refs"][i]) for case in cases for i in case["ids"]]
    columns = meteor.meteor_columns([text for text, _ in words], [group for _, group in words])
    start = 0
    for case in cases:
        part = columns[start : start + len(case["ids"])]
        start += len(part)
        expected = [case["per_image"][i]["METEOR"] for i in case["ids"]]
        assert meteor.meteor_of_sums(part) == pytest.approx(expected, abs=1e-6)
        total = meteor.meteor_summable(part).sum(axis=0)[None]
        assert meteor.meteor_of_sums(total)[0] == pytest.approx(case["corpus"]["METEOR"], abs=1e-6)


BREAKS = ["a cat\r dog", "a\u2028b", "one\x0btwo", "three\x0cfour", "x\x85y", "", "last\n"]


@pytest.mark.parametrize("how", ["py", pytest.param("ptb", marks=needs_java)])
def test_line_breaks_shift_no_caption(how: str) -> None:
    found, _ = tokens.tokenized(BREAKS, [], how)
    assert found == ["a cat dog", "a b", "one two", "three four", "x y", "", "last"]


def test_captions_by_hand() -> None:
    scores = metrics.bleu(["this is a good test"], [["this is a test", "this is also a test"]], None)
    assert scores["corpus"] == pytest.approx([0.8, 0.632456, 0.510873, 9.03602e-05], abs=1e-6)
    assert metrics.rouge_l(["this is a good test"], [["this is a test"]], "py")["corpus"] == pytest.approx(
        2.44 * 0.8 / (1 + 1.44 * 0.8)
    )
    pair = metrics.cider(["a red bus", "two dogs"], [["A red bus."], ["three cats"]], "py")
    assert pair["items"] == pytest.approx([7.5, 0]) and pair["corpus"] == pytest.approx(3.75)
    assert metrics.cider(["a red bus"], [["a red bus"]], None)["corpus"] == 0


def test_caption_refusals() -> None:
    for hypotheses, references in [([], []), (["a"], []), (["a"], [[]])]:
        with pytest.raises(ValueError):
            metrics.rouge_l(hypotheses, references, None)
    with pytest.raises(VlmkitError, match="unknown variant"):
        metrics.rouge_l(["a"], [["a"]], "nltk")


def test_captions_equal_pycocoevalcap() -> None:
    bleu_scorer = pytest.importorskip("pycocoevalcap.bleu.bleu_scorer")
    cider_scorer = pytest.importorskip("pycocoevalcap.cider.cider_scorer")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge")
    random = np.random.default_rng(0)
    words = [f"w{i}" for i in range(12)]
    texts = [" ".join(random.choice(words, random.integers(1, 12))) for _ in range(120)]
    hypotheses, references = texts[:20], [texts[20 + 5 * i : 25 + 5 * i] for i in range(20)]
    theirs, idf = bleu_scorer.BleuScorer(n=4), cider_scorer.CiderScorer(n=4, sigma=6.0)
    for hypothesis, group in zip(hypotheses, references, strict=True):
        theirs += (hypothesis, group)
        idf += (hypothesis, group)
    corpus, items = theirs.compute_score(option="closest")
    ours = metrics.bleu(hypotheses, references, None)
    assert ours["corpus"] == pytest.approx(corpus) and ours["items"] == pytest.approx(np.array(items).T)
    assert metrics.cider(hypotheses, references, None)["items"] == pytest.approx(idf.compute_score()[1])
    expected = [rouge.Rouge().calc_score([h], group) for h, group in zip(hypotheses, references, strict=True)]
    assert metrics.rouge_l(hypotheses, references, None)["items"] == pytest.approx(expected)


# Statistics


def test_statistics_as_lmms_eval_and_scipy(golden) -> None:
    found, expected = golden("stats"), golden("stats")["expected"]
    a, b = found["a"], found["b"]
    assert stats.standard_error(a) == pytest.approx(expected["stderr_a"])
    assert metrics.clustered_stderr(a, found["cluster"]) == pytest.approx(expected["clustered_stderr_a"])
    paired = metrics.paired_bootstrap(a, b)
    interval = expected["paired_bootstrap_percentile_95ci_of_diff(20000 resamples, tolerance 0.01)"]
    assert paired["diff"] == pytest.approx(0.15) and paired["ci95"] == pytest.approx(interval, abs=0.01)
    p = expected["paired_permutation_p(two-sided, tolerance 0.01)"]
    assert metrics.paired_permutation(a, b) == pytest.approx(p, abs=0.01)
    assert metrics.mcnemar(a, b) == pytest.approx(expected["mcnemar_exact_on_>=0.5"]["p"])
    hits = sum(value >= 0.5 for value in a)
    assert stats.wilson(hits, len(a)) == pytest.approx(expected["wilson_95ci_for_a>=0.5"])


def test_statistics_by_hand() -> None:
    assert metrics.mcnemar([1, 1, 1, 1, 0], [0, 0, 0, 0, 0]) == pytest.approx(2 / 16)
    assert metrics.mcnemar([1, 0], [1, 0]) == 1
    assert metrics.clustered_stderr([1, 0, 1, 0], [1, 2, 3, 4]) == pytest.approx(math.sqrt(1 / 3 / 4))
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert metrics.bootstrap_ci([1.0] * 9) == (1, 1)
    assert metrics.mcnemar([1] * 5000 + [0] * 4000, [0] * 5000 + [1] * 4000) < 1e-20


@pytest.mark.parametrize("values", [[], [math.nan, 1], [math.inf]])
def test_statistics_refuse(values: list[float]) -> None:
    for function in (metrics.bootstrap_ci, lambda v: metrics.clustered_stderr(v, v)):
        with pytest.raises(ValueError):
            function(values)
    with pytest.raises(ValueError):
        metrics.paired_bootstrap([1, 2], [1])


@unhurried
@given(numbers)
def test_interval_contains_the_mean(values: list[float]) -> None:
    low, high = metrics.bootstrap_ci(values, resamples=500)
    assert low - 1e-9 <= np.mean(values) <= high + 1e-9


@unhurried
@given(numbers, st.randoms(use_true_random=False))
def test_order_of_pairs_does_not_matter(values: list[float], random) -> None:
    pairs = [(value, 1 - value / 2) for value in values]
    shuffled = random.sample(pairs, len(pairs))
    one, two = (list(zip(*p, strict=True)) for p in (pairs, shuffled))
    assert metrics.mcnemar(*one) == metrics.mcnemar(*two)
    ours, theirs = metrics.paired_bootstrap(*one, resamples=400), metrics.paired_bootstrap(*two, resamples=400)
    assert ours["diff"] == pytest.approx(theirs["diff"])
    assert ours["ci95"][0] <= ours["diff"] + 1e-9 and ours["diff"] - 1e-9 <= ours["ci95"][1]


@pytest.mark.slow
@unhurried
@given(st.lists(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]), min_size=80, max_size=200))
def test_drawing_equal_items_together_changes_nothing(values: list[float]) -> None:
    """Few distinct values take the multinomial path; the interval agrees with the plain one."""
    column = np.array(values).reshape(-1, 1)
    quick = np.quantile(stats.resampled_sums(column, 4000, 0) / len(values), [0.025, 0.975])
    plain = np.concatenate([block @ column for block in stats.counts_of_resamples(len(values), 4000, 0)]) / len(values)
    assert quick == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.03)


@unhurried
@given(st.lists(st.text("ab .,", max_size=12), min_size=2, max_size=6))
def test_caption_scores_are_in_range(texts: list[str]) -> None:
    references = [[text, "a b"] for text in reversed(texts)]
    assert all(0 <= value <= 1 for value in metrics.rouge_l(texts, references, "py")["items"])
    assert all(0 <= value <= 10 + 1e-9 for value in metrics.cider(texts, references, "py")["items"])
    bleu = captions.bleu_of_sums(captions.bleu_columns(texts, references))
    assert ((bleu >= 0) & (bleu <= 1 + 1e-9)).all()
