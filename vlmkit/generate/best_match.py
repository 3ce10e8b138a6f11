"""As many pages of a document, or frames of a film, as a model takes: of one picture alone the best-matching one."""

import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlmkit.generate.questions import ChatSample
from vlmkit.io.executor import Lazy, Stage
from vlmkit.io.images import open_picture
from vlmkit.io.parts import Part
from vlmkit.io.pictures import picture_names
from vlmkit.io.records import Failed, name_of
from vlmkit.io.sources import Bytes, PictureError, open_source
from vlmkit.io.terminal import warn
from vlmkit.models.chat.fewer_pictures import left_out
from vlmkit.models.load import load_embedder
from vlmkit.models.types import ChatModel, Hardware

if TYPE_CHECKING:
    import numpy as np

WORD = re.compile(r"\w+")
DOCUMENTS = 4  # whose vectors are kept for further questions


@dataclass
class Select(Stage):
    """ChatSample -> ChatSample with no more pages or frames than the model takes; which, is told."""

    model: Lazy[ChatModel]
    _match: Any = None  # a BestMatch, between load and close

    def load(self) -> None:
        self._match = BestMatch()

    def __call__(self, sample: ChatSample) -> ChatSample | Failed:
        most, count = self.model().most_pictures, len(sample.labels)
        if most is None or count <= most:
            return sample
        name, key, labels = name_of(self.model().identity), sample.record["id"], sample.labels
        if most == 1:
            try:
                best = self._match(key, sample.pictures, str(sample.record.get("question") or ""))
            except PictureError as error:
                return Failed.of(sample.record, error, error.remedy)
            warn(f"{key}: {name} takes one picture: of {count} it is asked about the best-matching one, {labels[best]}")
            return _only(sample, best)
        chosen = _spread(count, most) if "time" in _fields(sample.pictures[0]) else list(range(most))
        warn(f"{key}: {left_out(count, labels[chosen[0]], labels[chosen[-1]])}")
        pictures, kept = [sample.pictures[i] for i in chosen], [labels[i] for i in chosen]
        names = picture_names(sample.record)
        record = sample.record | {"images": [names[i] for i in chosen]}
        return replace(sample, record=record, pictures=pictures, labels=kept)


class BestMatch:
    """Finds the picture that a question is about."""

    def __init__(self) -> None:
        self._embedder = Lazy(load_embedder, "mini", Hardware())
        self._known: OrderedDict[str, tuple[np.ndarray, list[str]]] = OrderedDict()

    def __call__(self, key: str, pictures: Sequence[str | Bytes], question: str) -> int:
        """The number of the best-matching one of the `pictures`, of which `key` is the name.

        By the words of the question in text layers, a rare one counting more; else, and where they are equal, by
        mini's cosine. Raises PictureError.
        """
        import numpy as np

        if key not in self._known:
            self._known[key] = self._read(pictures)
            while len(self._known) > DOCUMENTS:
                self._known.popitem(last=False)
        vectors, texts = self._known[key]
        cosines = vectors @ self._embedder().embed_texts([question])[0]  # (N,)
        return int(np.lexsort((cosines, _shared_words(question, texts)))[-1])

    def _read(self, pictures: Sequence[str | Bytes]) -> "tuple[np.ndarray, list[str]]":
        import numpy as np

        model = self._embedder()
        vectors: list[np.ndarray] = []
        texts = []
        for picture in pictures:
            source = open_source(picture) if isinstance(picture, str) else picture
            image = model.preprocess(open_picture(source, model.size)[0])
            vectors.append(model.embed_images(image[None])[0])
            texts.append(str(source.details().get("ocr", "")) if isinstance(source, Part) else "")
        return np.stack(vectors), texts


def _shared_words(question: str, texts: list[str]) -> list[float]:
    """For each text the sum of log(N / number of texts with it) over the question's words in it (Sparck Jones 1972)."""
    words = [set(WORD.findall(text.lower())) for text in texts]
    rare = {word: sum(word in some for some in words) for word in set(WORD.findall(question.lower()))}
    return [sum(math.log(len(texts) / rare[word]) for word in sorted(rare) if word in some) for some in words]


def _only(sample: ChatSample, number: int) -> ChatSample:
    """`sample` about one of its pictures alone."""
    record = {name: value for name, value in sample.record.items() if name != "images"}
    record |= {"image": picture_names(sample.record)[number]} | _fields(sample.pictures[number])
    return replace(sample, record=record, pictures=[sample.pictures[number]], labels=[])


def _fields(picture: Any) -> dict[str, Any]:
    return picture.fields if isinstance(picture, Part) else {}


def _spread(count: int, most: int) -> list[int]:
    """`most` of `count` numbers, from the first to the last."""
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
