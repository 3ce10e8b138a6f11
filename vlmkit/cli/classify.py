"""The command classify."""

from functools import partial
from typing import Annotated

from vlmkit.cli.options import (
    AllowPrivate,
    EmbedModelName,
    EmbedPrecision,
    Errors,
    Images,
    Inputs,
    Json,
    Nul,
    OutputFile,
    Run,
    option,
    valid_utf8,
)
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.terminal import Failures, Output, progress

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
    inputs: Inputs = None,
    output: OutputFile = None,
    model: EmbedModelName = "mini",
    precision: EmbedPrecision = None,
    labels: Labels = None,
    labels_file: LabelsFile = None,
    template: Template = None,
    k: K = None,
    images: Images = None,
    nul: Nul = False,
    allow_private: AllowPrivate = False,
    errors: Errors = None,
    json: Json = False,
) -> Exit:
    """Sort pictures by labels that you choose, without training.

    Each record gets `label`, the best one, and `labels`, all of them with probabilities: the softmax over the labels
    of cosine times the model's own logit scale. Records that bring an `embedding` of the same model are not opened.
    """
    from vlmkit.classify import DEFAULT_TEMPLATE, label_vectors, read_labels
    from vlmkit.classify import classify as classified
    from vlmkit.embed import vectors
    from vlmkit.io.inputs import Reading, check_outputs, count_inputs, read_inputs

    check_outputs(inputs or [], output, errors)
    if labels_file == "-" and (not inputs or "-" in inputs):
        raise VlmkitError("labels and pictures cannot both come from standard input", "name the pictures")
    names = read_labels(labels, labels_file)
    reading = Reading(nul=nul, images=images)
    items = read_inputs(inputs or [], reading)
    with Failures(errors) as failures, Output(output) as out:
        loaded = run.load(model, precision)
        targets = label_vectors(loaded, names, template or [DEFAULT_TEMPLATE])
        embedded = vectors(
            items,
            loaded,
            reuse=True,
            batch_size=run.batch_size,
            workers=run.threads,
            allow_private=allow_private,
        )
        results = classified(embedded, names, targets, loaded.logit_scale, k or len(names))
        count = partial(count_inputs, inputs or [], reading)
        out.write_records(failures.filter_failures(progress(results, quiet=run.quiet, unit="records", count=count)))
        return failures.exit_code()
