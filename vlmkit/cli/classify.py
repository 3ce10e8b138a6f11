"""The command classify."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from vlmkit.cli.options import EmbedOptions, Inputs, Records, Run, option, valid_utf8
from vlmkit.cli.screen import Name, Rows, heading, in_line, name_width
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.terminal import Failures, Output, progress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vlmkit.io.records import Record

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
    """Sort pictures by labels that you choose, without training.

    Each record gets `label`, the best one, and `labels`, all of them with probabilities: the softmax over the labels
    of cosine times the model's own logit scale. A `label` that came without `labels` is the data's own: it stays, and
    the best label becomes `predicted`. Records that bring an `embedding` of the same model are not opened.
    """
    from vlmkit.classify import DEFAULT_TEMPLATE, label_vectors, read_labels
    from vlmkit.classify import classify as classified
    from vlmkit.embed import vectors
    from vlmkit.io.inputs import count_inputs, read_inputs

    paths = records.check(inputs)
    if labels_file == "-" and (not paths or "-" in paths):
        raise VlmkitError("labels and pictures cannot both come from standard input", "name the pictures")
    names = read_labels(labels, labels_file)
    reading = records.reading(one_picture=True)
    items = read_inputs(paths, reading)
    summary = run.summary(reading.left_out)
    with Failures(records.errors, ignore=records.ignore, summary=summary) as failures, Output(records.output) as out:
        model = embedder.load(run)
        targets = label_vectors(model, names, template or [DEFAULT_TEMPLATE])
        how: dict[str, Any] = {
            "batch_size": run.batch_size,
            "workers": run.threads,
            "allow_private": records.allow_private,
        }
        embedded = vectors(items, model, reuse=True, **how)
        results = classified(embedded, names, targets, model.logit_scale, k or len(names))
        count = partial(count_inputs, paths, reading)
        found = failures.filter_failures(progress(results, quiet=run.quiet, unit="records", count=count))
        if records.for_person:
            _show(found, names, out, best_alone=k == 1)
        else:
            out.write_records(found)
        return failures.exit_code()


def _show(records: "Iterable[Record]", labels: list[str], out: Output, *, best_alone: bool) -> None:
    """A row each, as they come: the picture, its best label, how sure, and the other labels."""
    from rich.cells import cell_len

    widths = name_width(), min(max(map(cell_len, labels)), LONGEST), 5, 0
    rows = Rows(out, widths, ("picture", "label", "", "" if best_alone else "others"))
    for record in records:
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
