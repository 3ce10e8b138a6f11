"""eval caption: captions against reference captions, and against the picture where a model is named."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vlmkit.embed import vectors
from vlmkit.errors import VlmkitError
from vlmkit.eval.predictions import Row, text_of
from vlmkit.eval.results import Measure, Scores, mean_measure, ratio_of_sums
from vlmkit.eval.task import Gathered, Options, flags
from vlmkit.io.inputs import Item
from vlmkit.io.records import Failed, batched
from vlmkit.metrics.captions import LONGEST, bleu_columns, bleu_of_sums, cider, rouge_l
from vlmkit.metrics.meteor import meteor_columns, meteor_of_sums, meteor_summable
from vlmkit.metrics.tokens import java_missing, tokenized

if TYPE_CHECKING:
    import numpy as np

PREDICTION, REFERENCES = "caption", ("captions", "references", "answers", "target")
BLEU = tuple(f"bleu_{n}" for n in range(1, LONGEST + 1))
CLIP_WEIGHT = 2.5  # Hessel et al. 2021
CLIP_PREFIX = "A photo depicts "
TEXTS_AT_ONCE = 256


def score_captions(rows: Iterable[Row], options: Options) -> Scores:
    """The COCO metrics, length, vocabulary and repetition; CLIPScore and RefCLIPScore if a model is asked for."""
    options.pick_variant(("coco",))
    gathered = Gathered(options)
    kept = list(gathered.rows(rows))
    captions = [text_of(row.prediction) or "" for row in kept]
    how = options.tokenizer or ("py" if java_missing() else "ptb")
    plain = None if how == "none" else how
    measures: list[Measure] = []
    if kept:
        measures = _text_measures(*tokenized(captions, [row.references for row in kept], plain), options, how)
        if options.model_asked:
            measures += _clip_measures(kept, captions, options)
    scores = Scores(
        "caption",
        measures=measures,
        marks={"refs": gathered.refs(), "skipped": 0},
        unparsed=flags([not caption.strip() for caption in captions]),
        **gathered.shared(),
    )
    for i, (row, caption) in enumerate(zip(kept, captions, strict=True)):
        own = {m.name: round(_item(m, i), 6) for m in measures if m.name != "vocabulary"}
        gathered.keep(row, {"prediction": caption, "references": row.references, **own, "score": _overall(own)})
    return scores


def _item(measure: Measure, i: int) -> float:
    return float(measure.values[i]) if measure.values is not None else float(measure.of(measure.columns[i][None])[0])


def _overall(own: dict[str, float]) -> float:
    """What worst first goes by: the first of these that was scored."""
    return next((own[name] for name in ("cider", "rouge_l", "bleu_4", "clipscore") if name in own), 0.0)


def _text_measures(texts: list[str], groups: list[list[str]], options: Options, how: str) -> list[Measure]:
    import numpy as np

    measures: list[Measure] = []
    ones = np.ones(len(texts))
    if options.wants("cider"):
        if len(texts) < 2:
            raise VlmkitError("CIDEr of one image is 0, whatever its caption", "score more, or use --metric rouge_l")
        items = cider(texts, groups, None)["items"]
        measures.append(mean_measure("cider", f"cider:d|tok:{how}|idf:all", items))
    if options.wants(*BLEU):
        columns = bleu_columns(texts, groups)
        for n, name in enumerate(BLEU):
            measures.append(Measure(name, f"{name}:closest|tok:{how}", columns, _bleu(n), ones))
    if options.wants("rouge_l"):
        measures.append(mean_measure("rouge_l", f"rouge_l:1.2|tok:{how}", rouge_l(texts, groups, None)["items"]))
    if _meteor_wanted(options, how):
        rows = meteor_columns(texts, groups)
        measures.append(Measure("meteor", f"meteor:1.5|tok:{how}", meteor_summable(rows), meteor_of_sums, ones))
    words = [text.split() for text in texts]
    measures.append(mean_measure("length", f"length:words|tok:{how}", [len(w) for w in words]))
    measures.append(_vocabulary(words, how))
    times = Counter(texts)
    measures.append(mean_measure("repeated", f"repeated:same caption|tok:{how}", [times[text] > 1 for text in texts]))
    return measures


def _bleu(n: int):
    return lambda sums: bleu_of_sums(sums)[:, n]


def _meteor_wanted(options: Options, how: str) -> bool:
    """METEOR is for PTB's tokens; asked for by name it is tried, and fails, without Java."""
    return "meteor" in options.metrics or (not options.metrics and how == "ptb")


def _vocabulary(words: Sequence[Sequence[str]], how: str) -> Measure:
    """How many different words all captions have. No mean, so no interval: resamples repeat captions."""
    import numpy as np

    known: dict[str, int] = {}
    numbers = [sorted({known.setdefault(word, len(known)) for word in text}) for text in words]
    flat = np.array([number for text in numbers for number in text], np.intp)
    owner = np.repeat(np.arange(len(words)), [len(text) for text in numbers])

    def of_counts(counts: "np.ndarray") -> "np.ndarray":
        return np.array([len(np.unique(flat[row[owner] > 0])) for row in counts], np.float64)

    return Measure(
        "vocabulary",
        f"vocabulary:distinct words|tok:{how}",
        np.zeros((len(words), 1)),
        ratio_of_sums,
        np.ones(len(words)),
        of_counts=of_counts,
        has_interval=False,
    )


def _clip_measures(rows: Sequence[Row], captions: Sequence[str], options: Options) -> list[Measure]:
    """CLIPScore: 2.5 * max(cosine of caption and picture, 0). RefCLIPScore: its harmonic mean with the best cosine
    of the caption and a reference (Hessel et al. 2021). Vectors of the pictures are reused where the model made them.
    """
    import numpy as np

    assert options.model is not None
    model = options.model(None)
    items = (Item(row.record) for row in rows)
    pictures = []
    for found in vectors(items, model, reuse=True, batch_size=options.batch_size, workers=options.workers):
        if isinstance(found, Failed):
            raise VlmkitError(f"{found.id or found.image}: {found.error}", "score files whose pictures can be read")
        pictures.append(found[1])
    texts = [CLIP_PREFIX + text for text in captions]
    texts += [CLIP_PREFIX + text for row in rows for text in row.references]
    embedded = np.concatenate([model.embed_texts(batch) for batch in batched(texts, TEXTS_AT_ONCE)])
    ours, theirs = embedded[: len(rows)], embedded[len(rows) :]
    clip = CLIP_WEIGHT * np.maximum((np.stack(pictures) * ours).sum(axis=1), 0).astype(np.float64)
    owner = np.repeat(np.arange(len(rows)), [len(row.references) for row in rows])
    cosines = (theirs * ours[owner]).sum(axis=1).astype(np.float64)
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    best = np.maximum(np.maximum.reduceat(cosines, starts), 0)
    both = clip + best
    harmonic = np.divide(2 * clip * best, both, out=np.zeros_like(both), where=both > 0)
    head = f"w:{CLIP_WEIGHT}|prefix:{CLIP_PREFIX.strip()}|model:{model.identity}"
    return [
        mean_measure("clipscore", f"clipscore|{head}", clip),
        mean_measure("refclipscore", f"refclipscore|{head}", harmonic),
    ]
