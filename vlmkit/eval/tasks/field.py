"""eval field: means of the numbers in fields named by --metric, as in files that --items wrote."""

from collections.abc import Iterable, Iterator

from vlmkit.errors import VlmkitError
from vlmkit.eval.predictions import Options, Row, Source, identify, number_at, read_records
from vlmkit.eval.task import Scores, Task, mean_metric


def read(source: Source, options: Options) -> Iterator[Row]:
    """Every record is an item."""
    if not options.metrics:
        raise VlmkitError("the task field needs --metric", "name a field that holds numbers")
    for number, record in enumerate(read_records(source), 1):
        yield Row(identify(record, options, number), record)


def score(scores: Scores, rows: Iterable[Row], _: str) -> None:
    """The mean of each field."""
    names = scores.options.metrics
    values = [[number_at(row.record, name, row.id) for name in names] for row in rows]
    columns = zip(*values, strict=True)
    scores.metrics = [mean_metric(name, f"mean:{name}", c) for name, c in zip(names, columns, strict=False)]


TASK = Task(score, {}, predictions=(), read=read)
