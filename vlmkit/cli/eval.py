"""The command eval."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from inspect import cleandoc
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from vlmkit.cli.command import FILES
from vlmkit.cli.defaults import is_given
from vlmkit.cli.help import Topic, Topics
from vlmkit.cli.options import EMBED_MODEL_VARIABLE, Images, Json, OutputFile, Run, Seed, model_option, option
from vlmkit.cli.screen import for_person, print_table
from vlmkit.errors import Exit, VlmkitError
from vlmkit.eval.predictions import Options, Source
from vlmkit.eval.registry import TASKS, evaluate
from vlmkit.io.terminal import Output, stdin_file, stdin_is_terminal

if TYPE_CHECKING:
    from vlmkit.io.records import Record
    from vlmkit.models.types import Embedder

EMBED_BATCH = 16
CONFUSIONS = 10
COMPARE = "compare"


class EvalTask(StrEnum):
    """The tasks of the registry, and compare."""

    vars().update({name.upper(): name for name in (*TASKS.builtin, COMPARE)})


class Tokenizer(StrEnum):
    PTB = "ptb"
    PY = "py"
    NONE = "none"


TaskName = Annotated[EvalTask, typer.Argument(metavar="TASK", help=", ".join(EvalTask) + ".")]
Files = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE",
        help="Predictions: JSONL, JSON, lmms-eval samples, tables (TSV, CSV, xlsx); - for standard input.",
        show_default=False,
    ),
]
Text = str | None
METRIC_HELP = "Only metric M, or one that a package adds; may be repeated; to compare, any field with numbers, too."
TOKENIZER_HELP = "ptb needs Java, and is used if there is one; py needs none."
WEIGHTS_HELP = "One weighted score, quality=0.4,latency=0.3,length=0.3."
TRUTH_HELP = "References from FILE: records, VQA or COCO annotations, joined on the id."


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What is scored, and what is reported."""

    title: ClassVar[str] = "Scores"
    variant: Annotated[
        Text, option("--variant V", "How answers are compared, by the name of a variant of the task.")
    ] = None
    by: Annotated[
        Text, option("--by FIELD", "Results by FIELD, too, hardest first; category is guessed if absent.")
    ] = None
    metric: Annotated[list[str] | None, option("--metric M", METRIC_HELP)] = None
    k: Annotated[str, option("-k N,N", "The k of recall@k, separated by commas.")] = "1,5,10"
    cluster: Annotated[Text, option("--cluster FIELD", "Items with the same FIELD are not independent.")] = None
    tokenizer: Annotated[Tokenizer | None, option("--tokenizer", TOKENIZER_HELP)] = None
    confusions: Annotated[
        int | None, option("--confusions N", "Most frequent confusions.", min=0, show_default="10")
    ] = None
    model: Annotated[
        Text, model_option("Model that embeds: for retrieval, or the CLIPScore of captions.", EMBED_MODEL_VARIABLE)
    ] = None


@dataclass(frozen=True, slots=True)
class FieldNames:
    """Where a record has what is scored."""

    title: ClassVar[str] = "Fields of records"
    prediction: Annotated[Text, option("--prediction FIELD", "Field of the prediction, dotted if nested.")] = None
    references: Annotated[Text, option("--references FIELD", "Field of the references.")] = None
    id: Annotated[Text, option("--id FIELD", "Field of the id.")] = None
    question: Annotated[str, option("--question FIELD", "Field of the question.")] = "question"
    truth: Annotated[Text, option("--truth FILE", TRUTH_HELP)] = None


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """How two files are compared."""

    title: ClassVar[str] = "Comparison"
    compare_as: Annotated[
        EvalTask | None, option("--task", "Score both as this task, not as their fields suggest.")
    ] = None
    weights: Annotated[Text, option("--weights W", WEIGHTS_HELP)] = None
    latency: Annotated[
        str, option("--latency FIELD", "Field with the seconds that a prediction took.", needs=["weights"])
    ] = "latency"


Items = Annotated[
    Text, option("--items FILE", "Write each item to FILE: scores, strings compared, rule that decided.", group=FILES)
]
Html = Annotated[
    Text, option("--html FILE", "Write a page to FILE: the items with thumbnails, worst first.", group=FILES)
]


def eval(
    ctx: typer.Context,
    run: Run,
    task: TaskName,
    score: ScoreOptions,
    names: FieldNames,
    comparison: CompareOptions,
    files: Files = None,
    items: Items = None,
    html: Html = None,
    output: OutputFile = None,
    images: Images = None,
    json: Json = False,
    seed: Seed = None,
) -> Exit:
    """Score predictions with confidence intervals, and compare two models.

    Reads records with predictions and references; needs no model for what is in them. Prints one JSON object a
    metric: value, n, standard error, 95 % interval, and a signature that says how it was made. A table on a terminal.

    What cannot be scored is refused: missing or duplicate ids, missing references, k above N, CIDEr of one image.
    """
    from vlmkit.eval.report import page

    details = items is not None or html is not None
    options = _options(run, score, names, comparison, details, model_asked=is_given(ctx, "model"))
    paths = files or ["-"]
    for path in filter(None, (items, html)):
        if os.path.realpath(path) in map(os.path.realpath, paths):
            raise VlmkitError(f"{path} is an input, too", "name another file")
    if (len(paths) < 2 if task == COMPARE else len(paths) > 1) or paths.count("-") > 1:
        raise VlmkitError(
            f"{task} does not take {len(files or [])} files",
            "write vlmkit eval TASK [FILE], or vlmkit eval compare A B…",
        )
    with _sources(paths, images) as sources:
        if task == COMPARE:
            results, shown = _compare(sources, options, comparison, seed or 0)
        else:
            results, shown = _score(task, sources[0], options, score.confusions, seed or 0)
    if items is not None:
        with Output(items) as out:
            out.write_records(shown)
    if html is not None:
        with Output(html) as out:
            for piece in page(f"vlmkit eval {task} {' '.join(files or [])}", results, shown):
                out.write(piece)
    with Output(output) as out:
        if for_person(output, json):
            _print_table(results)
        else:
            out.write_records(results)
    return Exit.OK


def _options(
    run: Run, score: ScoreOptions, names: FieldNames, comparison: CompareOptions, details: bool, model_asked: bool
) -> Options:
    def load(name: str | None) -> "Embedder":
        return run.load((score.model if model_asked else None) or name or score.model or "mini")

    return Options(
        id=names.id,
        prediction=names.prediction,
        references=names.references,
        question=names.question,
        variant=score.variant,
        by=score.by,
        cluster=score.cluster,
        latency=comparison.latency if "latency" in (comparison.weights or "") else None,
        truth=names.truth,
        metrics=tuple(score.metric or ()),
        details=details,
        ks=_numbers(score.k),
        tokenizer=None if score.tokenizer is None else score.tokenizer.value,
        model=load,
        model_asked=model_asked,
        batch_size=run.batch(EMBED_BATCH),
        workers=run.threads,
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise VlmkitError(f"-k {text}: not numbers", "write -k 1,5,10") from None


@contextmanager
def _sources(names: Sequence[str], images: str | None) -> Iterator[list[Source]]:
    """The files to read; standard input becomes one."""
    if "-" in names and stdin_is_terminal():
        remedy = "name a file with predictions, such as vlmkit ask, caption and classify write with -o FILE"
        raise VlmkitError("no input", f"{remedy} (see --help)")
    for name in names:
        if os.path.isdir(name):
            raise VlmkitError(f"{name}: a folder, not predictions", "name a file of records")
        if name != "-" and not os.path.isfile(name):
            raise VlmkitError(f"{name}: no such file", "check the name")
    with stdin_file() if "-" in names else nullcontext("") as spool:
        yield [
            Source(spool, "-", images or os.getcwd()) if name == "-" else Source(name, name, images) for name in names
        ]


def _score(
    task: str, source: Source, options: Options, most: int | None, seed: int
) -> "tuple[list[Record], list[Record]]":
    """The results, and the items for --items and --html."""
    from vlmkit.eval.results import confusions, results

    scores = evaluate(str(task), source, options)
    usual = CONFUSIONS if task == "classify" or options.by is not None else 0
    return [*results(scores, seed), *confusions(scores, usual if most is None else most)], scores.details


def _compare(
    sources: list[Source], options: Options, comparison: CompareOptions, seed: int
) -> "tuple[list[Record], list[Record]]":
    """The differences of the first file and each other one, and the items of both for --items and --html."""
    from vlmkit.eval import compare

    task = comparison.compare_as
    shares = None if comparison.weights is None else compare.parse_weights(comparison.weights)
    if task == COMPARE:
        raise VlmkitError("--task compare", "name what both files are scored as, such as vqa")
    name = compare.task_of(sources[0], options.metrics) if task is None else str(task)
    found: list[Record] = []
    items: list[Record] = []
    for pair in compare.score_pairs(name, sources[0], sources[1:], options):
        differences = list(compare.differences(pair, seed))
        if shares is not None and differences:
            differences.append(compare.weighted_score(pair, shares, seed))
        found += differences
        items += compare.changed_items(pair)
    return found, items


def _print_table(results: "Sequence[Record]") -> None:
    from vlmkit.eval.report import result_table

    titles, rows = result_table(results)
    signatures = dict.fromkeys(str(result["signature"]) for result in results if "category" not in result)
    unparsed = next((result["unparsed"] for result in results if "unparsed" in result), 0)
    note = [f"unparsed answers: {unparsed}"] if unparsed else []
    print_table(titles, rows, right=titles[1:], below=[*signatures, *note])


COMPARED = """Two files or more, scored on the same items.

Prints A minus B with its interval, p of a permutation test and of McNemar's exact test; further files are compared with
A, too. What both are scored as is told by their fields, or by --task."""


def _describe(name: str) -> Topic:
    """What the file of the task says of it, the fields that it reads, its metrics and variants."""
    if name == COMPARE:
        return Topic(COMPARED)
    task = TASKS.load(name)
    text = cleandoc(sys.modules[TASKS[name].partition(":")[0]].__doc__ or "").removeprefix(f"eval {name}: ")
    facts = []
    if task.read is None:
        facts.append(
            f"The prediction is in {' or '.join(task.predictions)}, references in {' or '.join(task.references)}."
        )
    if task.metrics:
        facts.append(f"Metrics: {', '.join(task.metrics)}.")
    if task.variants:
        facts.append(f"Variants: {', '.join(task.variants)}; the first is the default.")
    values = {"metric": list(task.metrics), "variant": task.variants}
    return Topic(
        "\n\n".join([text[:1].upper() + text[1:], " ".join(facts)]), {"variant": next(iter(task.variants), "")}, values
    )


EMBEDDING = ("caption", "retrieval", COMPARE)
ANSWERS = tuple(name for name in EvalTask if name not in ("retrieval", "field"))
eval.topics = Topics(  # type: ignore[attr-defined]
    "Tasks",
    _describe,
    dict.fromkeys(("model", "device", "batch_size", "workers"), EMBEDDING)
    | dict.fromkeys(("prediction", "question", "truth"), ANSWERS)
    | dict.fromkeys(("compare_as", "weights", "latency"), (COMPARE,))
    | {
        "references": (*ANSWERS, "retrieval"),
        "variant": ("vqa", "caption", "retrieval", "pope", "anls", "chartqa", COMPARE),
        "k": ("retrieval", COMPARE),
        "tokenizer": ("caption", COMPARE),
        "confusions": ("classify",),
    },
)
