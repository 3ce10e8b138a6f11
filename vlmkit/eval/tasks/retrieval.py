"""eval retrieval: do captions find their picture, and pictures their captions?

The items are pictures: resamples draw a picture with all its captions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlmkit.errors import VlmkitError
from vlmkit.eval.embedding import embed_captions, embed_pictures, load_embedder
from vlmkit.eval.predictions import Options, Row, Source, check_distinct, identify, list_ids, read_records
from vlmkit.eval.task import HIGHER, LOWER, Metric, Scores, Task, counted_metric, mean_metric
from vlmkit.io.records import Record, decode_embedding, fingerprint_of, name_of
from vlmkit.metrics.ranking import check_k, ranks

if TYPE_CHECKING:
    import numpy as np

WAYS = ("text_to_image", "image_to_text")


@dataclass(slots=True)
class Picture(Row):
    """A picture; its references are the captions, `vectors` theirs where the records bring them."""

    vectors: "list[np.ndarray]" = field(default_factory=list)


def read(source: Source, options: Options) -> list[Row]:
    """The pictures of a file, with their captions: `captions` (and `caption_embeddings`) of the picture's record, or
    records of their own with `text`, `image` and an `embedding`, as `vlmkit embed --text` makes them.
    """
    pictures: dict[str, Picture] = {}
    texts: list[Record] = []
    ids = []
    for number, record in enumerate(read_records(source), 1):
        if isinstance(record.get("text"), str) and isinstance(record.get("image"), str):
            texts.append(record)
            continue
        ids.append(identify(record, options, number))
        captions = record.get(options.references or "captions")
        picture = Picture(ids[-1], record, references=list(map(str, captions)) if isinstance(captions, list) else [])
        picture.vectors = [_decode(vector, ids[-1]) for vector in record.get("caption_embeddings") or []]
        if picture.vectors and len(picture.vectors) != len(picture.references):
            raise VlmkitError(f"{ids[-1]}: not as many caption_embeddings as captions", "make the record again")
        pictures[str(record.get("image", ids[-1]))] = picture
    check_distinct(ids)
    for record in texts:
        if record["image"] not in pictures:
            raise VlmkitError(f"{record['id']}: no record of its picture {record['image']}", "add it to the input")
        picture = pictures[record["image"]]
        picture.references.append(record["text"])
        if "embedding" in record:
            picture.vectors.append(_decode(record["embedding"], record["id"]))
    without_reference = [picture.id for picture in pictures.values() if not picture.references]
    if without_reference:
        raise VlmkitError(f"no captions of {list_ids(without_reference)}", "name the field with --references FIELD")
    return list(pictures.values())


def _decode(value: object, key: object) -> "np.ndarray":
    try:
        return decode_embedding(value)
    except ValueError as error:
        raise VlmkitError(f"{key}: {error}", "embed it again") from None


def embed(pictures: Sequence[Picture], options: Options) -> "tuple[np.ndarray, np.ndarray, str]":
    """Vectors of the pictures (P x D) and of all captions in order (C x D), and the identity of their model.

    No model is loaded where the records bring all vectors and -m is not given.
    """
    import numpy as np

    records = [picture.record for picture in pictures]
    identities = sorted({str(r["model"]) for r in records if "embedding" in r and "model" in r})
    if len(set(map(fingerprint_of, identities))) > 1:
        raise VlmkitError(f"vectors of several models: {', '.join(identities)}", "embed all with one model")
    own = identities[0] if identities else None
    complete = all("embedding" in p.record and len(p.vectors) == len(p.references) for p in pictures)
    if complete and not options.model_asked:
        images = np.stack([_decode(picture.record["embedding"], picture.id) for picture in pictures])
        return images, np.stack([vector for picture in pictures for vector in picture.vectors]), own or "unknown"
    model = load_embedder(options, None if own is None else name_of(own))
    if own is not None and fingerprint_of(own) != fingerprint_of(model.identity) and not options.model_asked:
        raise VlmkitError(f"the vectors are of {own}, not of {model.identity}", "name their model with -m")
    texts = embed_captions([caption for picture in pictures for caption in picture.references], model)
    return embed_pictures(pictures, model, options), texts, model.identity


def score(scores: Scores, rows: Iterable[Row], _: str) -> None:
    """R@k, median and mean rank, mean reciprocal rank and tied queries, both ways."""
    import numpy as np

    pictures = [row for row in rows if isinstance(row, Picture)]
    if not pictures:
        return
    images, texts, identity = embed(pictures, scores.options)
    if images.shape[1] != texts.shape[1]:
        raise VlmkitError(f"pictures have {images.shape[1]} numbers, captions {texts.shape[1]}", "use one model")
    for k in scores.options.ks:
        check_k(k, len(images))
    number = np.arange(len(pictures))
    owner = np.repeat(number, [len(picture.references) for picture in pictures])
    of_texts, tied_texts = ranks(texts, images, owner, number)
    of_images, tied_images = ranks(images, texts, number, owner)
    scores.metrics = [
        *_metrics(WAYS[0], of_texts, tied_texts, owner, scores.options.ks),
        *_metrics(WAYS[1], of_images, tied_images, number, scores.options.ks),
    ]
    scores.signature_fields |= {"ties": "against", "model": identity}
    if scores.measure is not None:
        captions = [caption for picture in pictures for caption in picture.references]
        for picture, vector in zip(pictures, images, strict=True):
            picture.prediction = captions[int((texts @ vector).argmax())]
            scores.measure(picture)
    by_picture = np.split(of_texts + 1, np.flatnonzero(np.diff(owner)) + 1)
    for picture, own, found in zip(pictures, by_picture, of_images + 1, strict=True):
        shown = {"references": picture.references, "text_to_image_ranks": own.tolist()}
        mean_reciprocal = float((1 / own).mean() + 1 / found) / 2
        scores.add_detail(picture, shown | {"image_to_text_rank": int(found), "score": round(mean_reciprocal, 6)})


def _metrics(way: str, rank: "np.ndarray", tied: "np.ndarray", owner: "np.ndarray", ks: Iterable[int]) -> list[Metric]:
    """The metrics of one way. `rank` and `tied` are by query, `owner` is each query's picture."""
    import numpy as np

    head = f"retrieval:{way}"
    queries = np.bincount(owner).astype(np.float64)
    order = np.argsort(rank, kind="stable")

    def mean(name: str, of_query: "np.ndarray") -> Metric:
        return mean_metric(f"{way}_{name}", head, np.bincount(owner, of_query) / queries, queries)

    def median(counts: "np.ndarray") -> "np.ndarray":
        drawn = np.cumsum(counts[:, owner[order]], axis=1)  # (R, queries), from the best rank on
        half = drawn[:, -1:] / 2
        low, high = (drawn >= half).argmax(axis=1), (drawn > half).argmax(axis=1)
        return np.floor((rank[order][low] + rank[order][high]) / 2) + 1

    return [
        *(mean(f"recall@{k}", rank < k) for k in ks),
        counted_metric(f"{way}_median_rank", head, queries, median),
        mean("mean_rank", rank + 1.0),
        mean("mrr", 1 / (rank + 1)),
        mean("ties", tied),
    ]


DIRECTIONS = {"recall@*": HIGHER, "median_rank": LOWER, "mean_rank": LOWER, "mrr": HIGHER, "ties": LOWER}
TASK = Task(
    score,
    {f"{way}_{name}": direction for way in WAYS for name, direction in DIRECTIONS.items()},
    read=read,
    variants=("best-positive",),
    makes_predictions=True,
)
