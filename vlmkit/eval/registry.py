"""eval: scores predictions files, says how sure each figure is, and compares two files."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vlmkit.eval.predictions import Row, Source, read_rows
from vlmkit.eval.results import Scores
from vlmkit.eval.task import Options


@dataclass(frozen=True, slots=True)
class Task:
    """A task by the fields it reads and the function that scores its rows."""

    prediction: str
    references: tuple[str, ...]
    score: Callable[[Iterable[Row], Options], Scores]


def _task(name: str) -> Task:
    from vlmkit.eval.tasks import answers, caption, vqa

    return {
        "vqa": Task(vqa.PREDICTION, vqa.REFERENCES, vqa.vqa),
        "caption": Task(caption.PREDICTION, caption.REFERENCES, caption.score_captions),
        "classify": Task(answers.CLASSIFY_PREDICTION, answers.CLASSIFY_REFERENCES, answers.score_classify),
        "pope": Task(answers.PREDICTION, answers.POPE_REFERENCES, answers.score_pope),
        "anls": Task(answers.PREDICTION, answers.REFERENCES, answers.score_anls),
        "chartqa": Task(answers.PREDICTION, answers.REFERENCES, answers.score_chartqa),
    }[name]


def evaluate(name: str, source: Source, options: Options) -> Scores:
    """Score the predictions in `source` as the task called `name` does; the signature gets the file's sha."""
    if name == "retrieval":
        from vlmkit.eval.tasks.retrieval import score_retrieval

        scores = score_retrieval(source, options)
    else:
        task = _task(name)
        rows = read_rows(source, options.names, task.prediction, task.references, options.truth)
        scores = task.score(rows, options)
    scores.marks["sha"] = source.sha()
    return scores
