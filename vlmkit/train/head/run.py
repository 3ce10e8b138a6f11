"""`vlmkit train head`: from records with labels to a folder that `classify -m` opens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit import __version__
from vlmkit.errors import VlmkitError, check_installed
from vlmkit.io.files import atomic_folder, check_new_folder
from vlmkit.io.terminal import Failures
from vlmkit.models.head import NUMBER, Head, save_head
from vlmkit.models.head import HeadConfig as SavedConfig
from vlmkit.train.checkpoints import SETTINGS, as_toml
from vlmkit.train.config import HeadConfig
from vlmkit.train.distributed import deterministic
from vlmkit.train.head.data import Read, read_rows
from vlmkit.train.head.fit import fitted, fold_figures, summary, worthwhile_threads

CARD = """---
pipeline_tag: {pipeline}
tags: [vlmkit, linear-probe]
---

# {name}

Made by `vlmkit train head`, version {version}: a linear head on the frozen embedder {embedder}. `vlmkit classify -m
DIR` opens it.

| | |
|---|---|
| embedder | {embedder} |
| target | {target} |

## Data

{data}

## Recipe

{recipe}

All settings stand in `train.toml`; `vlmkit train head --config train.toml -o NEW` repeats the run.

## Results

Of {folds} folds: each part is predicted by a head that was fitted to the others, its weight decay chosen on them alone.
Mean and standard deviation over the folds. The head in this folder is fitted to all rows.

| figure | mean | sd |
|---|---|---|
{results}
"""


def train(
    config: HeadConfig,
    emit: Callable[[dict[str, Any]], None],
    failures: Failures,
    note: Callable[[str], None],
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Fit a head and save it in `config.out`; `emit` gets the figures of each fold, and of all.

    Raises VlmkitError; then there is no folder.
    """
    check_installed("train", "vlmkit[train]", "tomli_w")
    if resume:
        raise VlmkitError("a head is fitted at once, and leaves nothing to resume", "leave --resume out")
    check_new_folder(config.out)
    with deterministic(config.device):
        read = read_rows(config, failures, quiet)
        problem = read.problem(config)
        folds = []
        with worthwhile_threads(problem.x.size):
            for fold in fold_figures(problem):
                folds.append(fold)
                emit(_rounded(fold))
            weight, bias, l2 = fitted(problem, np.arange(len(problem.x)))
    found = summary(folds)
    emit(_rounded(found))
    saved = SavedConfig(
        problem.target, [] if problem.target == NUMBER else problem.names, read.embedder, weight.shape[1]
    )
    with atomic_folder(config.out) as made:
        save_head(Head(saved, weight.astype(np.float32), bias.astype(np.float32)), made)
        (made / "README.md").write_text(card(config, read, problem.target, l2, _rounded(found)))
        (made / SETTINGS).write_text(as_toml(config))
    note(f"{config.out}: a head of {len(problem.x)} rows, weight decay {l2:g}")
    return config.out


def card(config: HeadConfig, read: Read, target: str, l2: float, found: dict[str, Any]) -> str:
    """The model card."""
    data = [f"- {name}" for name in config.data]
    data.append(f"- {len(read.vectors)} rows of {read.read}; {read.repeats} repeat others")
    if target != NUMBER:
        data += [f"- {label}: {count}" for label, count in read.labels().items()]
    rows = []
    for name, value in found.items():
        if isinstance(value, dict):
            rows += [f"| {name} {label} | {_shown(area)} | |" for label, area in value.items()]
        elif name not in ("folds", "rows") and not name.endswith("_sd"):
            rows.append(f"| {name} | {_shown(value)} | {_shown(found[f'{name}_sd'])} |")
    kind = "ridge regression" if target == NUMBER else "logistic regression"
    how = f"L2-regularised {kind} on standardised vectors, weight decay {l2:g}"
    return CARD.format(
        pipeline="image-classification",
        name=config.out.name,
        version=__version__,
        embedder=read.embedder,
        target=target,
        data="\n".join(data),
        recipe=f"{how}, {'each class counts the same' if config.balance else 'each row counts the same'}.",
        folds=found["folds"],
        results="\n".join(rows),
    )


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _rounded(found: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _rounded(value) if isinstance(value, dict) else round(value, 6) if isinstance(value, float) else value
        for name, value in found.items()
    }
