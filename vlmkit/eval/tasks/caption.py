"""eval caption: captions against reference captions, and against the picture where a model is named."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from vlmkit.errors import VlmkitError
from vlmkit.eval.embedding import embed_captions, embed_pictures, load_embedder
from vlmkit.eval.predictions import Options, Row
from vlmkit.eval.task import HIGHER, NEITHER, Metric, Scores, Task, counted_metric, mean_metric
from vlmkit.metrics.captions import MAX_N, bleu_columns, bleu_of_sums, cider, rouge_l
from vlmkit.metrics.meteor import meteor_columns, meteor_of_sums, meteor_summable
from vlmkit.metrics.tokens import java_missing, tokenized

if TYPE_CHECKING:
    import numpy as np

BLEU = tuple(f"bleu_{n}" for n in range(1, MAX_N + 1))
CLIP_WEIGHT = 2.5  # Hessel et al. 2021
CLIP_PREFIX = "A photo depicts "
WORST_FIRST_BY = ("cider", "rouge_l", "bleu_4", "clipscore")  # the first of these that was scored


def score(scores: Scores, rows: Iterable[Row], _: str) -> None:
    """The COCO metrics, length, vocabulary and repetition; CLIPScore and RefCLIPScore if a model is asked for."""
    options = scores.options
    kept = list(rows)
    captions = [row.answer() for row in kept]
    scores.unparsed = [not caption.strip() for caption in captions]
    if not kept:
        return
    how = options.tokenizer or ("py" if java_missing() else "ptb")
    texts, groups = tokenized(captions, [row.references for row in kept], None if how == "none" else how)
    scores.metrics = _coco_metrics(texts, groups, options, how) + _text_metrics(texts, how)
    if options.model_asked:
        scores.metrics += _clip_metrics(kept, captions, options)
    for i, (row, caption) in enumerate(zip(kept, captions, strict=True)):
        own = {m.name: round(_item_value(m, i), 6) for m in scores.metrics if m.name != "vocabulary"}
        worst_first = next((own[name] for name in WORST_FIRST_BY if name in own), 0.0)
        scores.add_detail(row, {"prediction": caption, "references": row.references, **own, "score": worst_first})


def _item_value(metric: Metric, i: int) -> float:
    return float(metric.of_sums(metric.columns[i][None])[0] if metric.values is None else metric.values[i])


def _coco_metrics(texts: list[str], groups: list[list[str]], options: Options, how: str) -> list[Metric]:
    """CIDEr-D, BLEU, ROUGE-L and METEOR of tokenised captions, those that are asked for."""
    import numpy as np

    ones = np.ones(len(texts))
    metrics: list[Metric] = []
    if options.wants("cider"):
        if len(texts) < 2:
            raise VlmkitError("CIDEr of a single image is always 0", "score more, or use --metric rouge_l")
        metrics.append(mean_metric("cider", f"cider:d|tok:{how}|idf:all", cider(texts, groups, None)["items"]))
    if options.wants(*BLEU):
        columns = bleu_columns(texts, groups)
        metrics += [Metric(b, f"{b}:closest|tok:{how}", columns, _nth_bleu(n), ones) for n, b in enumerate(BLEU)]
    if options.wants("rouge_l"):
        metrics.append(mean_metric("rouge_l", f"rouge_l:1.2|tok:{how}", rouge_l(texts, groups, None)["items"]))
    # METEOR is for PTB's tokens; asked for by name it is tried, and fails, without Java.
    if "meteor" in options.metrics or (not options.metrics and how == "ptb"):
        columns = meteor_summable(meteor_columns(texts, groups))
        metrics.append(Metric("meteor", f"meteor:1.5|tok:{how}", columns, meteor_of_sums, ones))
    return metrics


def _nth_bleu(n: int) -> "Callable[[np.ndarray], np.ndarray]":
    return lambda sums: bleu_of_sums(sums)[:, n]


def _text_metrics(texts: list[str], how: str) -> list[Metric]:
    """Words a caption, different words in all, and the share of captions that occur more than once."""
    words = [text.split() for text in texts]
    times = Counter(texts)
    return [
        mean_metric("length", f"length:words|tok:{how}", [len(found) for found in words]),
        _vocabulary(words, how),
        mean_metric("repeated", f"repeated:same caption|tok:{how}", [times[text] > 1 for text in texts]),
    ]


def _vocabulary(words: Sequence[Sequence[str]], how: str) -> Metric:
    """How many different words all captions have. No mean, so no interval: resamples repeat captions."""
    import numpy as np

    known: dict[str, int] = {}
    numbers = [sorted({known.setdefault(word, len(known)) for word in text}) for text in words]
    flat = np.array([number for text in numbers for number in text], np.intp)
    owner = np.repeat(np.arange(len(words)), [len(text) for text in numbers])

    def of_counts(counts: "np.ndarray") -> "np.ndarray":
        return np.array([len(np.unique(flat[row[owner] > 0])) for row in counts], np.float64)

    head = f"vocabulary:distinct words|tok:{how}"
    return counted_metric("vocabulary", head, np.ones(len(words)), of_counts, has_interval=False)


def _clip_metrics(rows: Sequence[Row], captions: Sequence[str], options: Options) -> list[Metric]:
    """CLIPScore: 2.5 * max(cosine of caption and picture, 0). RefCLIPScore: its harmonic mean with the best cosine
    of the caption and a reference (Hessel et al. 2021).
    """
    import numpy as np

    model = load_embedder(options)
    pictures = embed_pictures(rows, model, options)
    texts = [*captions, *(text for row in rows for text in row.references)]
    embedded = embed_captions([CLIP_PREFIX + text for text in texts], model)
    ours, theirs = embedded[: len(rows)], embedded[len(rows) :]
    clip = CLIP_WEIGHT * np.maximum((pictures * ours).sum(axis=1), 0).astype(np.float64)
    owner = np.repeat(np.arange(len(rows)), [len(row.references) for row in rows])
    cosines = (theirs * ours[owner]).sum(axis=1).astype(np.float64)
    best = np.maximum(np.maximum.reduceat(cosines, np.flatnonzero(np.diff(owner, prepend=-1))), 0)
    total = clip + best
    harmonic = np.divide(2 * clip * best, total, out=np.zeros_like(total), where=total > 0)
    head = f"w:{CLIP_WEIGHT}|prefix:{CLIP_PREFIX.strip()}|model:{model.identity}"
    return [
        mean_metric("clipscore", f"clipscore|{head}", clip),
        mean_metric("refclipscore", f"refclipscore|{head}", harmonic),
    ]


TASK = Task(
    score,
    dict.fromkeys(("cider", *BLEU, "rouge_l", "meteor", "clipscore", "refclipscore"), HIGHER)
    | dict.fromkeys(("length", "vocabulary", "repeated"), NEITHER),
    predictions=("caption",),
    references=("captions", "references", "answers", "target"),
    variants=("coco",),
)
