"""The tasks of `vlmkit eval`, and the metrics that other packages add.

A task is one file in `eval/tasks` with a `TASK`, and one line here. A metric is one function and one line: here in
METRICS, or in another package as an entry point of the group `vlmkit.metrics`:

    [project.entry-points."vlmkit.metrics"]
    brevity = "my_package.metrics:brevity"

    def brevity(prediction: str, references: list[str]) -> float:
        return 1 / max(1, len(prediction.split()))  # 1 for one word, less for more

The function scores one item, 0 to 1, higher is better; an empty prediction is "", there is at least one reference. Then
`vlmkit eval vqa --metric brevity` and `vlmkit eval compare A B --metric brevity` report its mean over the items, for
every task: in retrieval the prediction is the caption that a picture finds first. A task's own metrics come first.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from vlmkit.errors import VlmkitError, first_line
from vlmkit.eval.predictions import Options, Row, Source
from vlmkit.eval.task import Scores, Task, mean_metric
from vlmkit.io.registry import Registry

TASKS = Registry(
    "vlmkit.tasks",
    {
        "vqa": "vlmkit.eval.tasks.vqa:TASK",
        "caption": "vlmkit.eval.tasks.caption:TASK",
        "retrieval": "vlmkit.eval.tasks.retrieval:TASK",
        "classify": "vlmkit.eval.tasks.classify:TASK",
        "choice": "vlmkit.eval.tasks.choice:TASK",
        "pope": "vlmkit.eval.tasks.pope:TASK",
        "anls": "vlmkit.eval.tasks.anls:TASK",
        "chartqa": "vlmkit.eval.tasks.chartqa:TASK",
        "field": "vlmkit.eval.tasks.field:TASK",
    },
)
METRICS = Registry("vlmkit.metrics", {"anls": "vlmkit.metrics:anls", "vqa_accuracy": "vlmkit.metrics:vqa_accuracy"})

# The task that a record's fields suggest, by the first of these that it has.
SUGGESTED_TASKS = {
    "caption": "caption", "predicted": "classify", "labels": "classify", "options": "choice", "choices": "choice",
    "answer": "vqa", "embedding": "retrieval", "captions": "retrieval",
}  # fmt: skip

ItemMetric = Callable[[str, Sequence[str]], float]


def evaluate(
    name: str, source: Source, options: Options, arrange: Callable[[Iterable[Row]], Iterable[Row]] = iter
) -> Scores:
    """Score the predictions in `source`, in the order of `arrange`, as the task called `name` does.

    Raises VlmkitError for what cannot be scored.
    """
    task: Task = TASKS.load(name)
    scores = Scores(name, task, options)
    own = [metric for metric in options.metrics if task.predictions and task.direction(metric) is None]
    added: dict[str, ItemMetric] = {metric: METRICS.load(metric) for metric in own if metric in METRICS}
    values: dict[str, list[float]] = {metric: [] for metric in added}

    def measure(row: Row) -> None:
        for metric, function in added.items():
            values[metric].append(_item_value(metric, function, row))

    def measured(rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            measure(row)
            yield row

    rows = scores.collect(arrange(task.rows(source, options)))
    if task.makes_predictions:
        scores.measure = measure if added else None
    else:
        rows = measured(rows)
    task.score(scores, rows, task.variant(options.variant))
    if scores.ids:
        scores.metrics += [mean_metric(m, f"{m}|from:{METRICS[m]}", found) for m, found in values.items()]
    for metric, found in values.items():
        for detail, value in zip(scores.details, found, strict=False):
            detail[metric] = value
    scores.unparsed = scores.unparsed or [False] * len(scores.ids)
    counts = sorted(scores.reference_counts - {0})
    references = "-".join(map(str, dict.fromkeys([counts[0], counts[-1]]))) if counts else None
    scores.signature_fields = {"refs": references, "skipped": 0, **scores.signature_fields, "sha": source.sha()}
    return scores


def _item_value(name: str, function: ItemMetric, row: Row) -> float:
    try:
        value = float(function(row.answer(), row.references))
    except VlmkitError:
        raise
    except Exception as error:  # another package's function may raise anything
        what = f"the metric {name} failed for {row.id} ({first_line(error)})"
        raise VlmkitError(what, f"check the package that provides {METRICS[name]}") from None
    if not 0 <= value <= 1:
        raise VlmkitError(f"the metric {name} gave {value:g} for {row.id}", "make it return a number from 0 to 1")
    return value
