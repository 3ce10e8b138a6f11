"""eval retrieval: do captions find their picture, and pictures their captions?

The items are pictures: resamples draw a picture with all its captions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlmkit.embed import vectors
from vlmkit.errors import VlmkitError
from vlmkit.eval.predictions import Row, Source, distinct, identity, read_records, told
from vlmkit.eval.results import Measure, Scores, mean_measure, ratio_of_sums
from vlmkit.eval.task import Gathered, Options, flags
from vlmkit.io.inputs import Item
from vlmkit.io.records import Failed, Record, batched, decode_embedding, fingerprint_of, name_of
from vlmkit.metrics.ranking import check_k
from vlmkit.models.types import Embedder

if TYPE_CHECKING:
    import numpy as np

NEAR = 1e-6  # cosines in float32 that differ by less are tied
QUERIES_AT_ONCE = 1024
TEXTS_AT_ONCE = 256


@dataclass(slots=True)
class _Picture:
    """A picture with what is known of its captions."""

    row: Row
    captions: list[str] = field(default_factory=list)
    vectors: "list[np.ndarray]" = field(default_factory=list)  # of the captions, where the records bring them


def read_pictures(source: Source, options: Options) -> list[_Picture]:
    """The pictures of a file, with their captions: `captions` (and `caption_embeddings`) of the picture's record, or
    records of their own with `text`, `image` and an `embedding`, as `vlmkit embed --text` makes them.
    """
    pictures: dict[str, _Picture] = {}
    texts: list[Record] = []
    ids = []
    wanted = options.names.references or "captions"
    for number, record in enumerate(read_records(source), 1):
        if isinstance(record.get("text"), str) and isinstance(record.get("image"), str):
            texts.append(record)
            continue
        key = identity(record, options.names, number)
        captions = record.get(wanted)
        row = Row(key, record, None, captions if isinstance(captions, list) else [], "")
        picture = _Picture(row, [str(caption) for caption in row.references])
        picture.vectors = [_decoded(v, key) for v in record.get("caption_embeddings") or []]
        if picture.vectors and len(picture.vectors) != len(picture.captions):
            raise VlmkitError(f"{key}: not as many caption_embeddings as captions", "make the record again")
        ids.append(key)
        pictures[str(record.get("image", key))] = picture
    distinct(ids)
    for record in texts:
        picture_of = pictures.get(record["image"])
        if picture_of is None:
            raise VlmkitError(f"{record['id']}: no record of its picture {record['image']}", "add it to the input")
        picture_of.captions.append(record["text"])
        if "embedding" in record:
            picture_of.vectors.append(_decoded(record["embedding"], record["id"]))
    found = list(pictures.values())
    bare = [picture.row.id for picture in found if not picture.captions]
    if bare:
        raise VlmkitError(f"no captions of {told(bare)}", "name the field with --references FIELD")
    for picture in found:
        picture.row.references = picture.captions
    return found


def _decoded(value: object, key: object) -> "np.ndarray":
    try:
        return decode_embedding(value)
    except ValueError as error:
        raise VlmkitError(f"{key}: {error}", "embed it again") from None


def embedded(pictures: Sequence[_Picture], options: Options) -> "tuple[np.ndarray, np.ndarray, str]":
    """Vectors of the pictures (P x D) and of all captions in order (C x D), and the identity of their model.

    No model is loaded where the records bring all vectors and -m names none.
    """
    import numpy as np

    made_by = {str(p.row.record["model"]) for p in pictures if "embedding" in p.row.record and "model" in p.row.record}
    if len({fingerprint_of(identity) for identity in made_by}) > 1:
        raise VlmkitError(f"vectors of several models: {', '.join(sorted(made_by))}", "embed all with one model")
    own = sorted(made_by)[0] if made_by else None
    whole = all("embedding" in p.row.record and len(p.vectors) == len(p.captions) for p in pictures)
    if whole and not options.model_asked:
        images = np.stack([_decoded(p.row.record["embedding"], p.row.id) for p in pictures])
        texts = np.stack([vector for p in pictures for vector in p.vectors])
        return images, texts, own or "unknown"
    assert options.model is not None
    model = options.model(None if own is None else name_of(own))
    if own is not None and fingerprint_of(own) != fingerprint_of(model.identity) and not options.model_asked:
        raise VlmkitError(f"the vectors are of {own}, not of {model.identity}", "name their model with -m")
    captions = [caption for picture in pictures for caption in picture.captions]
    texts = np.concatenate([model.embed_texts(batch) for batch in batched(captions, TEXTS_AT_ONCE)])
    return _pictures(pictures, model, options), texts, model.identity


def _pictures(pictures: Sequence[_Picture], model: Embedder, options: Options) -> "np.ndarray":
    import numpy as np

    items = (Item(picture.row.record) for picture in pictures)
    found = []
    for result in vectors(items, model, reuse=True, batch_size=options.batch_size, workers=options.workers):
        if isinstance(result, Failed):
            raise VlmkitError(f"{result.id or result.image}: {result.error}", "leave it out of the file")
        found.append(result[1])
    return np.stack(found)


def ranks(queries: "np.ndarray", candidates: "np.ndarray", owner: "np.ndarray", queried: "np.ndarray"):
    """For each query the 0-based rank of its best positive, ties counted against it, and whether it was tied.

    `queries` is Q x D, `candidates` C x D; candidate c is right for query q where `owner[c] == queried[q]`.
    """
    import numpy as np

    rank = np.empty(len(queries), np.int64)
    tied = np.empty(len(queries), bool)
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        cosines = queries[part] @ candidates.T  # (queries, C)
        right = owner[None, :] == queried[part, None]
        best = np.where(right, cosines, -np.inf).max(axis=1, keepdims=True)
        ahead = (cosines >= best - NEAR) & ~right
        rank[part] = ahead.sum(axis=1)
        tied[part] = (ahead & (cosines <= best + NEAR)).any(axis=1)
    return rank, tied


def score_retrieval(source: Source, options: Options) -> Scores:
    """R@k, median and mean rank, mean reciprocal rank and tied queries, both directions."""
    import numpy as np

    options.pick_variant(("best-positive",))
    pictures = read_pictures(source, options)
    gathered = Gathered(options)
    for _ in gathered.rows(picture.row for picture in pictures):
        pass
    measures: list[Measure] = []
    marks: dict[str, object] = {"refs": gathered.refs(), "skipped": 0}
    if pictures:
        images, texts, identity_of = embedded(pictures, options)
        if images.shape[1] != texts.shape[1]:
            raise VlmkitError(f"pictures have {images.shape[1]} numbers, captions {texts.shape[1]}", "use one model")
        number = np.arange(len(pictures))
        owner = np.repeat(number, [len(picture.captions) for picture in pictures])
        for k in options.ks:
            check_k(k, len(images))
        forward, tied_forward = ranks(texts, images, number, owner)
        backward, tied_backward = ranks(images, texts, owner, number)
        measures = [
            *_measures("text_to_image", forward, tied_forward, owner, options.ks),
            *_measures("image_to_text", backward, tied_backward, number, options.ks),
        ]
        marks |= {"ties": "against", "model": identity_of}
        by_picture = np.split(forward + 1, np.flatnonzero(np.diff(owner)) + 1)
        for picture, own, found in zip(pictures, by_picture, backward + 1, strict=True):
            shown = {"references": picture.captions, "text_to_image_ranks": own.tolist()}
            score = float((1 / own).mean() + 1 / found) / 2
            gathered.keep(picture.row, shown | {"image_to_text_rank": int(found), "score": round(score, 6)})
    return Scores(
        "retrieval", measures=measures, marks=marks, unparsed=flags([False] * len(pictures)), **gathered.shared()
    )


def _measures(
    way: str, rank: "np.ndarray", tied: "np.ndarray", owner: "np.ndarray", ks: Iterable[int]
) -> list[Measure]:
    """The figures of one direction. `rank` and `tied` are by query, `owner` is each query's picture."""
    import numpy as np

    queries = np.bincount(owner).astype(np.float64)

    def mean(name: str, of_query: "np.ndarray") -> Measure:
        return mean_measure(f"{way}_{name}", f"retrieval:{way}", np.bincount(owner, of_query) / queries, queries)

    order = np.argsort(rank, kind="stable")

    def median(counts: "np.ndarray") -> "np.ndarray":
        heavy = np.cumsum(counts[:, owner[order]], axis=1)  # (R, queries), from the best rank on
        half = heavy[:, -1:] / 2
        low, high = (heavy >= half).argmax(axis=1), (heavy > half).argmax(axis=1)
        return np.floor((rank[order][low] + rank[order][high]) / 2) + 1

    zeros = np.zeros((len(queries), 1))
    middle = Measure(f"{way}_median_rank", f"retrieval:{way}", zeros, ratio_of_sums, queries, of_counts=median)
    return [
        *(mean(f"recall@{k}", (rank < k).astype(np.float64)) for k in ks),
        middle,
        mean("mean_rank", rank + 1.0),
        mean("mrr", 1 / (rank + 1)),
        mean("ties", tied.astype(np.float64)),
    ]
