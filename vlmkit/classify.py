"""classify: the label that fits a picture best, by its name (zero-shot, Radford et al. 2021) or by a trained head."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vlmkit.embed import own_vectors
from vlmkit.embed import vectors as vectors_of
from vlmkit.errors import VlmkitError
from vlmkit.io.files import decode_text, read_text
from vlmkit.io.inputs import Item
from vlmkit.io.records import Failed, Record, batched, fingerprint_of, unless_failed
from vlmkit.io.terminal import stdin_bytes
from vlmkit.models.head import NUMBER, Head
from vlmkit.models.types import Embedder

if TYPE_CHECKING:
    import numpy as np

DEFAULT_TEMPLATE = "a photo of a {}."


def read_labels(listed: str | None, file: str | None) -> list[str]:
    """The labels of `--labels a,b,c` or of a file with one label a line (`-`: standard input), without repetitions.

    Raises VlmkitError if there is none.
    """
    if (listed is None) == (file is None):
        raise VlmkitError("no labels" if file is None else "labels given twice", "use --labels A,B or --labels-file F")
    if file is not None:
        remedy = "name a text file with one label a line"
        text = decode_text(stdin_bytes()[1].read(), file, remedy) if file == "-" else read_text(file, remedy)
        lines = text.splitlines()
    else:
        lines = listed.split(",") if listed else []
    labels = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not labels:
        raise VlmkitError("no labels", "use --labels A,B or --labels-file F")
    return labels


def label_vectors(embedder: Embedder, labels: Sequence[str], templates: Sequence[str]) -> "np.ndarray":
    """L labels -> L x D unit vectors: the mean over the templates, normalised. `{}` in a template is the label."""
    import numpy as np

    prompts = label_prompts(labels, templates)
    if all(map(embedder.knows_nothing_of, labels)):
        raise VlmkitError("the model does not know any word of the labels", "use words of a language that it knows")
    vectors = np.concatenate([embedder.embed_user_texts(batch) for batch in batched(prompts, 256)])
    embedder.tell_cut_texts()
    return mean_vectors(vectors, labels)


def label_prompts(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Each label in each template, those of one label together. Raises VlmkitError for a template without a place."""
    for template in templates:
        if "{}" not in template:
            raise VlmkitError(f"the template {template!r} has no {{}}", "write {} where the label goes")
    return [template.replace("{}", label) for label in labels for template in templates]


def mean_vectors(vectors: "np.ndarray", labels: Sequence[str]) -> "np.ndarray":
    """The vectors of `label_prompts` -> L x D: the mean of each label's, normalised."""
    import numpy as np

    means = vectors.reshape(len(labels), -1, vectors.shape[1]).mean(axis=1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def best_labels(
    vector: "np.ndarray", labels: Sequence[str], vectors: "np.ndarray", logit_scale: float, k: int
) -> list[dict[str, Any]]:
    """The `k` labels that fit a vector (D) best, each with its probability among all labels."""
    import numpy as np

    logits = logit_scale * (vectors @ vector)  # (L,)
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    order = np.argsort(-probabilities, kind="stable")[:k]
    return [{"label": labels[i], "score": round(float(probabilities[i]), 6)} for i in order]


def classify(
    embedded: "Iterable[tuple[Record, np.ndarray] | Failed]",
    labels: Sequence[str],
    vectors: "np.ndarray",
    logit_scale: float,
    k: int,
) -> Iterator[Record | Failed]:
    """Each record with `label` and `labels`, the k best with their probabilities among all labels.

    Where `label` is the data's own, which came without `labels`, it stays, and `predicted` is the best one.
    """

    def to_record(found: "tuple[Record, np.ndarray]") -> Record:
        record, vector = found
        return _labelled(record, best_labels(vector, labels, vectors, logit_scale, k))

    return map(unless_failed(to_record), embedded)


def classify_by_head(
    items: Iterator[Item | Failed], head: Head, load: Callable[[], Embedder], k: int | None, how: dict[str, Any]
) -> Iterator[Record | Failed]:
    """Each record as `classify` makes it, with the labels of `head`; of a number with that as `predicted`.

    The embedder is loaded when the first record without its vector comes; `how` is what `embed.vectors` takes.
    """

    def embedded(rest: "Iterable[Item | Failed]") -> "Iterator[tuple[Record, np.ndarray] | Failed]":
        head.check(model := load())
        return vectors_of(rest, model, reuse=True, **how)

    def to_record(found: "tuple[Record, np.ndarray]") -> Record | Failed:
        record, vector = found
        if len(vector) != head.config.dim:
            what = f"its embedding has {len(vector)} numbers, those of its model {head.config.dim}"
            return Failed.of(record, what, "embed it again")
        if head.config.target == NUMBER:
            return record | {"predicted": round(float(head.predict(vector[None])[0, 0]), 6)}
        return _labelled(record, head.ranked(vector)[:k])

    fingerprint = fingerprint_of(head.config.embedder)
    return map(unless_failed(to_record), own_vectors(items, fingerprint, embedded))


def _labelled(record: Record, best: list[dict[str, Any]]) -> Record:
    has_own = "label" in record and ("labels" not in record or "predicted" in record)
    return record | {"predicted" if has_own else "label": best[0]["label"], "labels": best}
