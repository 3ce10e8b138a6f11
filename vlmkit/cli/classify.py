"""The command classify."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from vlmkit.cli.options import EmbedOptions, Inputs, Records, Run, option, valid_utf8
from vlmkit.cli.screen import Name, Rows, heading, in_line, name_width
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.terminal import Failures, Output, progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vlmkit.io.inputs import Item
    from vlmkit.io.records import Failed, Record

OTHERS = 5  # labels beside the best one in a row, each at
LEAST = 0.005
LONGEST = 24  # characters of a label in a line

Labels = Annotated[
    str | None,
    option("--labels A,B,C", "The labels, separated by commas.", callback=valid_utf8),
]
LabelsFile = Annotated[
    str | None,
    option("--labels-file FILE", "A file with one label a line, - for standard input."),
]
Template = Annotated[
    list[str] | None,
    option(
        "--template TEXT",
        'Sentence with {} for the label, "a photo of a {}."; may be repeated.',
        callback=valid_utf8,
    ),
]
K = Annotated[int | None, option("-k N", "Number of labels to report; all without it.", min=1)]


def classify(
    run: Run,
    embedder: EmbedOptions,
    records: Records,
    inputs: Inputs = None,
    labels: Labels = None,
    labels_file: LabelsFile = None,
    template: Template = None,
    k: K = None,
) -> Exit:
    """Sort pictures by labels that you choose, or by a trained head.

    Each record gets `label`, the best one, and `labels`, all of them with probabilities: the softmax over the labels
    of cosine times the model's own logit scale. A `label` that came without `labels` is the data's own: it stays, and
    the best label becomes `predicted`. Records that bring an `embedding` of the same model are not opened.

    -m may be a folder of `vlmkit train head`, which has labels and embedder of its own. Probabilities of classes that
    may apply together do not add up to 1. A number goes into `predicted`.
    """
    from vlmkit.io.inputs import count_inputs, read_inputs
    from vlmkit.models.head import is_head

    paths = records.check(inputs)
    if labels_file == "-" and (not paths or "-" in paths):
        raise VlmkitError("labels and pictures cannot both come from standard input", "name the pictures")
    labelled = _by_head if is_head(embedder.model) else _by_names
    names, label = labelled(embedder, run, _Wanted(labels, labels_file, template, k))
    reading = records.reading(one_picture=True)
    items = read_inputs(paths, reading)
    summary = run.summary(reading.left_out)
    with Failures(records.errors, ignore=records.ignore, summary=summary) as failures, Output(records.output) as out:
        how: dict[str, Any] = {
            "batch_size": run.batch_size,
            "workers": run.threads,
            "allow_private": records.allow_private,
        }
        results = label(items, how)
        count = partial(count_inputs, paths, reading)
        found = failures.filter_failures(progress(results, quiet=run.quiet, unit="records", count=count))
        if records.for_person:
            _show(found, names, out, best_alone=k == 1)
        else:
            out.write_records(found)
        return failures.exit_code()


class _Wanted(NamedTuple):
    """What the command line says of labels."""

    labels: str | None
    file: str | None
    templates: list[str] | None
    k: int | None


Labelling = tuple[list[str], Callable[["Iterator[Item | Failed]", dict[str, Any]], "Iterator[Record | Failed]"]]


def _by_names(embedder: EmbedOptions, run: Run, wanted: _Wanted) -> Labelling:
    """The names of labels, and what finds those of records by them."""
    from vlmkit.classify import DEFAULT_TEMPLATE, classify, label_vectors, read_labels
    from vlmkit.embed import vectors

    names = read_labels(wanted.labels, wanted.file)

    def label(items: "Iterator[Item | Failed]", how: dict[str, Any]) -> "Iterator[Record | Failed]":
        model = embedder.load(run)
        targets = label_vectors(model, names, wanted.templates or [DEFAULT_TEMPLATE])
        embedded = vectors(items, model, reuse=True, **how)
        return classify(embedded, names, targets, model.logit_scale, wanted.k or len(names))

    return names, label


def _by_head(embedder: EmbedOptions, run: Run, wanted: _Wanted) -> Labelling:
    """The labels of a head, and what finds those of records. Raises VlmkitError for labels of the command line."""
    from vlmkit.classify import classify_by_head
    from vlmkit.io.records import name_of
    from vlmkit.models.head import open_head

    flags = {"--labels": wanted.labels, "--labels-file": wanted.file, "--template": wanted.templates}
    for flag in (flag for flag, value in flags.items() if value is not None):
        raise VlmkitError(f"{flag} is not for a head, which has labels of its own", "leave it out")
    head = open_head(embedder.model)
    own = replace(embedder, model=name_of(head.config.embedder))
    return head.config.labels, lambda items, how: classify_by_head(items, head, partial(own.load, run), wanted.k, how)


def _show(records: "Iterable[Record]", labels: list[str], out: Output, *, best_alone: bool) -> None:
    """A row each, as they come: the picture, its best label, how sure, and the other labels; or its number."""
    from rich.cells import cell_len

    widths = name_width(), min(max(map(cell_len, ["predicted" if not labels else "label", *labels])), LONGEST), 5, 0
    titles = ("picture", "label", "", "" if best_alone else "others")
    rows = Rows(out, widths, titles) if labels else Rows(out, widths[:2], ("picture", "predicted"))
    for record in records:
        if not labels:
            rows.add(Name.of(record), heading(f"{record['predicted']:g}"))
            continue
        best, *others = record["labels"]
        own = [f"labelled {record['label']}"] if record.get("label") != best["label"] else []
        rest = [f"{other['label']} {_percent(other['score'])}" for other in others if other["score"] >= LEAST]
        rows.add(
            Name.of(record),
            heading(best["label"]),
            f"{_percent(best['score']):>5}",
            in_line(", ".join([*own, *rest[:OTHERS]])),
        )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
