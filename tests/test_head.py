"""train head, and classify with what it makes: against scikit-learn, and as a user would."""

import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
from helpers import embedded, jsonl, records, vector
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from vlmkit.metrics.probabilities import auroc, calibration_error, recalls_and_f1, spearman
from vlmkit.models.head import Head, HeadConfig, open_head, save_head
from vlmkit.train.head.fit import Problem, figures, fitted, fold_figures

MODEL = "toy@0123456789ab"
WORDS = ("cat", "dog", "owl")


def clouds(count: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(unit vectors in three clouds (count, 6), the number of each one's cloud)"""
    rng = np.random.default_rng(seed)
    kinds = np.arange(count) % 3
    x = rng.normal(size=(3, 6))[kinds] + rng.normal(size=(count, 6)) + 2
    return x / np.linalg.norm(x, axis=1, keepdims=True), kinds


def rows(count: int = 90, **fields: object) -> list[dict]:
    x, kinds = clouds(count)
    return [
        embedded(f"{i}", point.tolist(), MODEL, label=WORDS[kind], **fields)
        for i, (point, kind) in enumerate(zip(x, kinds, strict=True))
    ]


def problem(y: np.ndarray, target: str, names: list[str], **settings: object) -> Problem:
    return Problem(clouds(len(y))[0], y, target, names, 3, 0, **settings)


@pytest.mark.parametrize("balance", [False, True])
def test_logistic_regression_is_that_of_scikit_learn(balance: bool) -> None:
    x, kinds = clouds()
    kinds = kinds[: len(x)] * (np.arange(90) % 2)  # two thirds are of the first class
    weight, bias, _ = fitted(problem(np.eye(3)[kinds], "class", [*WORDS], l2=0.05, balance=balance), np.arange(90))
    scaler = StandardScaler().fit(x)
    reference = LogisticRegression(
        C=1 / (90 * 0.05), class_weight="balanced" if balance else None, tol=1e-8, max_iter=1000
    ).fit(scaler.transform(x), kinds)
    logits = x @ weight.T + bias
    expected = reference.predict_proba(scaler.transform(x))
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(1).numpy(), expected, atol=2e-4)


def test_ridge_regression_is_that_of_scikit_learn() -> None:
    x, kinds = clouds()
    y = kinds + x[:, 0]
    weight, bias, _ = fitted(problem(y[:, None], "number", ["label"], l2=0.3), np.arange(90))
    scaler = StandardScaler().fit(x)
    reference = Ridge(alpha=0.3 * 90).fit(scaler.transform(x), y)
    np.testing.assert_allclose(x @ weight[0] + bias, reference.predict(scaler.transform(x)), atol=1e-9)


def test_metrics_are_those_of_scikit_learn() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 8, 50) / 8, rng.random(50) < 0.4  # with ties
    assert auroc(scores, positive) == pytest.approx(sklearn.metrics.roc_auc_score(positive, scores))
    assert auroc(scores, np.zeros(50, bool)) is None
    other = rng.random(50)
    assert spearman(scores, other) == pytest.approx(spearmanr(scores, other)[0])
    truth, said = np.eye(3, dtype=bool)[rng.integers(0, 3, 50)], np.eye(3, dtype=bool)[rng.integers(0, 3, 50)]
    recall, f1 = recalls_and_f1(said, truth)
    numbers = truth.argmax(1), said.argmax(1)
    assert recall.mean() == pytest.approx(sklearn.metrics.balanced_accuracy_score(*numbers))
    assert f1.mean() == pytest.approx(sklearn.metrics.f1_score(*numbers, average="macro"))
    assert calibration_error(np.array([0.9, 0.9, 0.1, 0.1]), np.array([1, 0, 0, 0])) == pytest.approx(0.25)


def test_figures_of_a_fold_are_of_rows_that_its_head_did_not_see() -> None:
    """Of labels that say nothing about the vectors, nothing is known of a part that was held out."""
    y = np.eye(3)[np.random.default_rng(5).integers(0, 3, 300)]
    whole = problem(y, "class", [*WORDS], l2=1e-4)
    weight, bias, _ = fitted(whole, np.arange(300))
    known = figures(whole, whole.x @ weight.T + bias, y)["accuracy"]
    folds = [*fold_figures(whole)]
    assert [fold["rows"] for fold in folds] == [100, 100, 100]
    assert (
        known > np.mean([fold["accuracy"] for fold in folds]) and np.mean([fold["accuracy"] for fold in folds]) < 0.42
    )
    parts = whole.parts(np.arange(300))
    assert sorted(np.concatenate(parts).tolist()) == list(range(300))
    counts = np.array([y[part].sum(0) for part in parts])
    assert np.ptp(counts, axis=0).max() <= 1  # each has its share of every class


def test_head_of_piped_vectors(vlmkit, tmp_path: Path) -> None:
    """The embedder is not on this machine: nothing but its vectors is needed."""
    data = jsonl(*rows())
    done = vlmkit("train", "head", "-o", "head", "--folds", "3", stdin=data)
    *folds, summary = records(done.stdout)
    assert [fold["fold"] for fold in folds] == [1, 2, 3] and summary["folds"] == 3
    assert summary["accuracy"] == pytest.approx(np.mean([fold["accuracy"] for fold in folds]), abs=1e-5)
    assert summary["accuracy"] > 0.6 and set(summary["auroc"]) == set(WORDS)
    assert {file.name for file in (tmp_path / "head").iterdir()} == {
        *["config.json", "model.safetensors", "README.md", "train.toml"]
    }
    head = open_head(tmp_path / "head")
    assert head.config.labels == [*WORDS] and head.config.embedder == MODEL
    found = records(vlmkit("classify", "-m", "head", stdin=data).stdout)
    assert all(row["label"] in WORDS and row["predicted"] == row["labels"][0]["label"] for row in found)
    assert np.mean([row["label"] == row["predicted"] for row in found]) > 0.7
    assert sum(label["score"] for label in found[0]["labels"]) == pytest.approx(1, abs=1e-5)
    point = np.array(rows()[0]["embedding"], np.float32)
    logits = head.weight.astype(float) @ point + head.bias
    best = {entry["label"]: entry["score"] for entry in found[0]["labels"]}
    expected = torch.from_numpy(logits).softmax(0).tolist()
    assert [best[label] for label in head.config.labels] == pytest.approx(expected, abs=1e-5)
    vlmkit("train", "head", "-o", "again", "--folds", "3", stdin=data)
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("head", "again")]
    assert same[0] == same[1]
    assert b"is not empty" in vlmkit("train", "head", "-", "-o", "head", stdin=data, code=2).stderr


def test_rows_that_cannot_be_used_are_told(vlmkit, tmp_path: Path) -> None:
    good = rows(30)
    odd = [
        {key: value for key, value in good[0].items() if key != "label"} | {"id": "bare"},
        good[1] | {"id": "number", "label": [3]},
        good[2],
        good[3] | {"id": "contradiction", "label": "dog"},
        embedded("rare", [9, 1, 0, 0, 0, 1.5], MODEL, label="bat"),
        embedded("foreign", [1, 1, 0, 0, 0, 0], "other@ffffffffffff", label="cat") | {"image": None, "id": "foreign"},
    ]
    done = vlmkit("train", "head", "-o", "head", "--errors", "errors.jsonl", stdin=jsonl(*good, *odd), code=3)
    failed = {row["id"] for row in records((tmp_path / "errors.jsonl").read_bytes())}
    assert failed == {"bare", "number", "foreign"}
    said = done.stderr.decode()
    assert "3 of 36 rows cannot be used" in said and "1 rows repeat" in said
    assert "1 rows have the vector of another row and another label" in said
    assert "its embedding is by other@ffffffffffff, not by toy@0123456789ab" in said
    assert "too few rows for each of 5 folds: bat (1)" in said
    for data, why in (([], "no row can be used"), (rows(3), "3 rows are fewer than the 5 folds")):
        assert why in vlmkit("train", "head", "-o", "no", stdin=jsonl(*data), code=2).stderr.decode()
    same = [row | {"label": "cat"} for row in rows(9)]
    assert "nothing to tell apart" in vlmkit("train", "head", "-o", "no", stdin=jsonl(*same), code=2).stderr.decode()
    assert not (tmp_path / "no").exists()


def test_classes_that_apply_together_and_numbers(vlmkit) -> None:
    many = [row | {"labels": [row["label"], *(["even"] if i % 2 else [])]} for i, row in enumerate(rows())]
    bare = jsonl(*({k: v for k, v in row.items() if k != "label"} for row in many))
    *_, summary = records(vlmkit("train", "head", "-o", "many", "--folds", "3", stdin=bare).stdout)
    assert set(summary["auroc"]) == {*WORDS, "even"} and "exact" in summary
    (found, *_) = records(vlmkit("classify", "-m", "many", "-k", "4", stdin=jsonl(rows()[0])).stdout)
    assert sum(label["score"] for label in found["labels"]) != pytest.approx(1, abs=1e-3)
    numbers = [row | {"label": float(row["embedding"][0])} for row in rows()]
    *_, summary = records(vlmkit("train", "head", "-o", "number", stdin=jsonl(*numbers)).stdout)
    assert summary["r2"] > 0.99 and summary["spearman"] > 0.99
    found = records(vlmkit("classify", "-m", "number", stdin=jsonl(*numbers)).stdout)
    assert [row["predicted"] for row in found] == pytest.approx([row["label"] for row in numbers], abs=0.05)
    assert "labels" not in found[0]


def test_head_of_pictures_with_mini(vlmkit, photos: Path, tmp_path: Path, photo_rows: bytes) -> None:
    labelled = [
        {key: row[key] for key in ("id", "image")} | {"label": "day" if i % 2 else "night"}
        for i, row in enumerate(records(photo_rows))
    ]
    (tmp_path / "labelled.jsonl").write_bytes(jsonl(*labelled))
    vlmkit("train", "head", "labelled.jsonl", "-o", "head", "--folds", "2", "--l2", "0.1")
    config = json.loads((tmp_path / "head/config.json").read_text())
    assert config["embedder"].startswith("mini@")
    name = labelled[0]["image"]
    (of_picture,) = records(vlmkit("classify", "-m", "head", name).stdout)
    (of_vector,) = records(vlmkit("classify", "-m", "head", stdin=photo_rows.splitlines(keepends=True)[0]).stdout)
    for one, other in zip(of_picture["labels"], of_vector["labels"], strict=True):
        assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=5e-3)  # float16
    checks = records(vlmkit("train", "check", "head").stdout)
    assert [check["check"] for check in checks] == ["files", "weights", "opens", "card"] and all(
        c["ok"] for c in checks
    )
    config["embedder"] = "mini@000000000000"
    (tmp_path / "head/config.json").write_text(json.dumps(config))
    assert b"fitted to vectors of mini@000000000000" in vlmkit("classify", "-m", "head", name, code=2).stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--resume"], "--resume is not for head"),
        (["--preset", "debug"], "--preset is not for head"),
        (["--lr", "1"], "--lr is not for head"),
        (["--folds", "1"], "at least 2"),
    ],
)
def test_settings_that_a_head_has_no_use_for(vlmkit, words: list[str], why: str) -> None:
    assert why in vlmkit("train", "head", "-", "-o", "head", *words, stdin=jsonl(*rows(6)), code=2).stderr.decode()


def test_gate_of_a_constitution(vlmkit, photos: Path, tmp_path: Path, photo_rows: bytes) -> None:
    """A picture is declined before the model is asked, another one is not."""
    found = {Path(row["image"]).name: row for row in records(photo_rows)}
    cat, cup = vector(found["chelsea.png"]), vector(found["coffee.png"])
    config = HeadConfig("class", ["cat", "other"], found["chelsea.png"]["model"], len(cat))
    head = Head(config, np.stack([40 * (cat - cup), 40 * (cup - cat)]), np.zeros(2, np.float32))
    (tmp_path / "rules/head").mkdir(parents=True)
    save_head(head, tmp_path / "rules/head")
    file = tmp_path / "rules/mine.toml"
    rest = "\n[kind]\nprinciples = ['Be kind.']\n"
    file.write_text(f'[gate]\nfurry = {{ head = "head", labels = ["cat"] }}{rest}')
    rows = [{"image": str(photos / name), "question": "what is it?"} for name in ("chelsea.png", "coffee.png")]
    told, asked = records(vlmkit("ask", "--constitution", file, "--max-tokens", "2", stdin=jsonl(*rows)).stdout)
    assert told["answer"] == "I would rather not answer this (furry)." and told["declined"] == "furry"
    assert told["declined_score"] > 0.99 and "scores" not in told
    assert "declined" not in asked and asked["initial"]
    (bare,) = records(vlmkit("ask", "--constitution", file, photos / "chelsea.png", "what is it?", "--json").stdout)
    assert bare["declined"] == "furry"
    for entry, why in (
        ('{ head = "head", labels = ["dog"] }', "labels of its head, which are cat, other, not dog"),
        ('{ head = "head" }', "labels of its head, which are cat, other"),
        ('{ head = "none", labels = ["cat"] }', "holds no head"),
        ('{ labels = ["cat"] }', "neither a question nor a table with a head"),
        ('{ head = "head", labels = ["cat"], over = 1 }', "unknown key over"),
    ):
        file.write_text(f"[gate]\nfurry = {entry}{rest}")
        done = vlmkit("ask", "--constitution", file, stdin=jsonl(rows[0]), code=2)
        assert why in done.stderr.decode()
