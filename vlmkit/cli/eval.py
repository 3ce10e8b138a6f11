"""The command eval."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from vlmkit.cli.options import Images, Json, OutputFile, Run
from vlmkit.errors import Exit, VlmkitError, one_line
from vlmkit.eval.predictions import Options, Source
from vlmkit.eval.registry import TASKS, evaluate
from vlmkit.io.terminal import Output, console, stdin_file, stdin_is_terminal

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


def _field(flag: str, text: str, metavar: str = "FIELD"):
    return typer.Option(flag, metavar=metavar, help=text)


def _variants() -> str:
    variants = {name: TASKS.load(name).variants for name in TASKS.builtin}
    return "; ".join(f"{name}: {', '.join(known)}" for name, known in variants.items() if len(known) > 1) + "."


def eval(
    run: Run,
    task: Annotated[
        EvalTask,
        typer.Argument(
            metavar="TASK",
            help=f"What to score: {', '.join(TASKS.builtin)}; or compare, with two files.",
            show_default=False,
        ),
    ],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="Predictions: JSONL, JSON, lmms-eval samples, VLMEvalKit .tsv or .xlsx; - for standard input.",
            show_default=False,
        ),
    ] = None,
    variant: Annotated[str | None, _field("--variant", _variants(), "V")] = None,
    by: Annotated[
        str | None, _field("--by", "Results by FIELD, too, hardest first; category is guessed if absent.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        _field(
            "--metric",
            "Only metric M, or one that a package adds; may be repeated. compare: any field with numbers, too.",
            "M",
        ),
    ] = None,
    k: Annotated[str, _field("-k", "retrieval: the k of recall@k, separated by commas.", "N,N")] = "1,5,10",
    items: Annotated[
        str | None, _field("--items", "Write each item to FILE: scores, strings compared, rule that decided.", "FILE")
    ] = None,
    html: Annotated[
        str | None, _field("--html", "Write a page to FILE: the items with thumbnails, worst first.", "FILE")
    ] = None,
    output: OutputFile = None,
    prediction: Annotated[str | None, _field("--prediction", "Field of the prediction, dotted if nested.")] = None,
    references: Annotated[str | None, _field("--references", "Field of the references.")] = None,
    id_field: Annotated[str | None, _field("--id", "Field of the id.")] = None,
    question: Annotated[str, _field("--question", "Field of the question.")] = "question",
    truth: Annotated[
        str | None,
        _field("--truth", "References from FILE: records, VQA or COCO annotations, joined on the id.", "FILE"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "-m", "--model", metavar="MODEL", help="caption: CLIPScore with MODEL; retrieval: embed with MODEL."
        ),
    ] = None,
    tokenizer: Annotated[
        Tokenizer | None, typer.Option(help="caption: PTB needs Java, and is used if there is one; py needs none.")
    ] = None,
    cluster: Annotated[str | None, _field("--cluster", "Items with the same FIELD are not independent.")] = None,
    confusions: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Most frequent confusions; 10 for classify and with --by.")
    ] = None,
    compare_as: Annotated[
        EvalTask | None, typer.Option("--task", help="compare: score both as this task, not as their fields suggest.")
    ] = None,
    weights: Annotated[
        str | None, _field("--weights", "compare: one weighted score, quality=0.4,latency=0.3,length=0.3.", "W")
    ] = None,
    latency: Annotated[str, _field("--latency", "compare: field with the seconds that a prediction took.")] = "latency",
    images: Images = None,
    json: Json = False,
) -> Exit:
    """Score predictions with confidence intervals, and compare two models.

    Reads records with predictions and references; needs no model for what is in them. Prints one JSON object a
    metric: value, n, standard error, 95 % interval, and a signature that says how it was made. A table on a terminal.

    `vlmkit eval compare A B` scores both files on the same items and prints A minus B with its interval, p of a
    permutation test and of McNemar's exact test. What cannot be scored is refused: missing or duplicate ids, missing
    references, k above N, CIDEr of one image.
    """
    from vlmkit.eval.report import page

    def load(name: str | None) -> "Embedder":
        return run.load(model or name or os.environ.get("VLMKIT_EMBED_MODEL") or "mini")

    options = Options(
        id=id_field,
        prediction=prediction,
        references=references,
        question=question,
        variant=variant,
        by=by,
        cluster=cluster,
        latency=latency if weights is not None and "latency" in weights else None,
        truth=truth,
        metrics=tuple(metric or ()),
        details=items is not None or html is not None,
        ks=_numbers(k),
        tokenizer=None if tokenizer is None else tokenizer.value,
        model=load,
        model_asked=model is not None,
        batch_size=run.batch(EMBED_BATCH),
        workers=run.threads,
    )
    names = files or ["-"]
    for path in filter(None, (items, html)):
        if os.path.realpath(path) in map(os.path.realpath, names):
            raise VlmkitError(f"{path} is an input, too", "name another file")
    if len(names) != (2 if task == COMPARE else 1) or names.count("-") > 1:
        raise VlmkitError(f"{task} of {len(files or [])} files", "vlmkit eval TASK [FILE], vlmkit eval compare A B")
    with _sources(names, images) as sources:
        if task == COMPARE:
            results, shown = _compare(sources, options, compare_as, weights, run.seed or 0)
        else:
            results, shown = _score(task, sources[0], options, confusions, run.seed or 0)
    if items is not None:
        with Output(items) as out:
            out.write_records(shown)
    if html is not None:
        with Output(html) as out:
            for piece in page(f"vlmkit eval {task} {' '.join(files or [])}", results, shown):
                out.write(piece)
    with Output(output) as out:
        if output is None and not json and sys.stdout.isatty():
            _print_table(results)
        else:
            out.write_records(results)
    return Exit.OK


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise VlmkitError(f"-k {text}: not numbers", "write -k 1,5,10") from None


@contextmanager
def _sources(names: Sequence[str], images: str | None) -> Iterator[list[Source]]:
    """The files to read; standard input becomes one."""
    if "-" in names and stdin_is_terminal():
        raise VlmkitError("no input", "name a file, or pipe something in (see --help)")
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
    sources: list[Source], options: Options, task: EvalTask | None, weights: str | None, seed: int
) -> "tuple[list[Record], list[Record]]":
    """The differences, and the items of both files for --items and --html."""
    from vlmkit.eval import compare

    shares = None if weights is None else compare.parse_weights(weights)
    if task == COMPARE:
        raise VlmkitError("--task compare", "name what both files are scored as, such as vqa")
    name = compare.task_of(sources[0], options.metrics) if task is None else str(task)
    pair = compare.score_pair(name, sources[0], sources[1], options)
    found = list(compare.differences(pair, seed))
    if shares is not None and found:
        found.append(compare.weighted_score(pair, shares, seed))
    return found, compare.changed_items(pair)


def _print_table(results: "Sequence[Record]") -> None:
    from rich.table import Table
    from rich.text import Text

    from vlmkit.eval.report import result_table

    titles, rows = result_table(results)
    table = Table(box=None, header_style="bold")
    for number, title in enumerate(titles):
        table.add_column(title, overflow="ellipsis" if number else "fold", justify="right" if number else "left")
    for name, *cells in rows:
        table.add_row(Text(one_line(name)), *cells)
    terminal = console()
    terminal.print(table)
    for signature in dict.fromkeys(str(result["signature"]) for result in results if "category" not in result):
        terminal.print(Text(one_line(signature)), style="dim", soft_wrap=True)
