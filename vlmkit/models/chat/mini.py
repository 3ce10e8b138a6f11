"""The language side of `mini`: tokens in, logits of the next one out, with a cache of what came before.

What the image tower of `mini` sees at each of 7 x 7 places, before it is averaged into one vector.

image.onnx gives the vector alone. A second output is added when it is opened: serialized protobuf messages that follow
each other merge, so a few bytes behind the file's declare one more output of its graph (Protocol Buffers, "Encoding").
The file, and so the identity of `mini`, stay as they are.

`mini` answers questions and describes pictures, by ONNX Runtime alone.

Its image tower sees 7 x 7 places, which stand in the text as so many words before the question. Pictures that several
requests share are read once. Of a conversation it knows the pictures, not what was said. How it was made and what it is
good for stands in TALK_CARD.md.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.models.batching import BatchSize
from vlmkit.models.chat.base import Answer, CaptionPreset, Request, RequestError, Sampling
from vlmkit.models.chat.decoding import Reply, at_random, beam_search, likeliest, one_by_one
from vlmkit.models.embedders.mini import IMAGE_BATCH, SIZE, Mini, open_graph, preprocess
from vlmkit.models.registry import Hardware
from vlmkit.models.resolve import Checkpoint

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime
    from PIL.Image import Image


PLACE = -1  # among token ids: a place of a picture
PADDING = -2
HIDDEN = -1e9  # added to the score of a token that must not be seen


class Past(NamedTuple):
    """What N rows of tokens left behind: keys and values by layer, and which of the T places are no padding (N, T)."""

    cache: "list[onnxruntime.OrtValue]"
    real: "np.ndarray"


class Decoder:
    """talk.onnx (see talk_graph.py)."""

    def __init__(self, path: Path, threads: int) -> None:
        self._session = open_graph(path, threads)
        self._cached = {node.name: node.shape for node in self._session.get_inputs()[5:]}
        self._outputs = [node.name for node in self._session.get_outputs()]

    def __call__(
        self,
        ids: "np.ndarray",
        past: Past | None = None,
        rows: "np.ndarray | None" = None,
        grid: "np.ndarray | None" = None,
    ) -> "tuple[np.ndarray, Past]":
        """Logits (N, V) of what follows `ids` (N, L), and the cache with them.

        Row i of `ids` (padding on the left) follows row `rows[i]` of `past`, or row i without `rows`. The places of
        `grid` (M, 49, 1280) stand where `ids` has PLACE, in order.
        """
        import numpy as np
        from onnxruntime import OrtValue

        count, length = ids.shape
        past = past or self._nothing(count)
        rows = np.arange(count) if rows is None else rows
        real = np.concatenate([past.real[rows], ids != PADDING], axis=1)  # (N, S)
        positions = np.maximum(real.cumsum(1)[:, -length:] - 1, 0)
        seen = real[:, None, :] & np.tri(length, real.shape[1], real.shape[1] - length, dtype=bool)  # (N, L, S)
        inputs = {
            "ids": np.where(ids == PADDING, 0, ids).astype(np.int64),
            "positions": positions.astype(np.int64),
            "mask": np.where(seen, np.float32(0), np.float32(HIDDEN)),
            "rows": rows.astype(np.int64),
            "grid": np.zeros((0, PLACES, WIDTH), np.float32) if grid is None else grid,
        }
        values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
        values |= dict(zip(self._cached, past.cache, strict=True))
        logits, *cache = self._session.run_with_ort_values(self._outputs, values)
        return logits.numpy(), Past(cache, real)

    def _nothing(self, count: int) -> Past:
        import numpy as np
        from onnxruntime import OrtValue

        free = {"P": count, "T": 0}
        shapes = [[free.get(size, size) for size in shape] for shape in self._cached.values()]
        empty = [OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) for shape in shapes]
        return Past(empty, np.zeros((count, 0), bool))


IMAGE = "image.onnx"
SIDE, WIDTH = 7, 1280
PLACES = SIDE * SIDE
POOLING = re.compile(rb"\x0a.(?P<name>n\d+)\x12.n\d+\x22\x11GlobalAveragePool", re.DOTALL)  # a NodeProto of ONNX


class Features:
    """The grid of features of pictures, from the `image.onnx` in a folder of `mini`."""

    def __init__(self, folder: Path, threads: int) -> None:
        path = folder / IMAGE
        try:
            found = POOLING.search(path.read_bytes())
        except OSError as error:
            raise VlmkitError(f"{path}: {error.strerror}", "install vlmkit again") from None
        if found is None:
            raise VlmkitError(f"{path} has no grid of features", "make it with vlmkit.recipes.mini.train_embedder")
        self._name = found["name"].decode()
        self._session = open_graph(path, threads, _declared(found["name"]))
        self._vectors = self._session.get_outputs()[0]

    def __call__(self, pictures: "np.ndarray") -> "np.ndarray":
        """(N, 224, 224, 3) uint8 -> (N, 49, 1280) float32, row by row; 0 to 6, as the last activation is ReLU6."""
        return self.with_vectors(pictures)[0]

    def with_vectors(self, pictures: "np.ndarray", flip_augment: bool = False) -> "tuple[np.ndarray, np.ndarray]":
        """The same, and the vectors that `mini` embeds the pictures as, (N, D) float32.

        With `flip_augment` both are the means over a picture and its mirror image, whose places are turned back.
        """
        import numpy as np

        if flip_augment:
            here, vector = self.with_vectors(pictures)
            there, other = self.with_vectors(np.ascontiguousarray(pictures[:, :, ::-1]))
            back = there.reshape(-1, SIDE, SIDE, WIDTH)[:, :, ::-1].reshape(here.shape)
            return (here + back) / 2, (vector + other) / 2
        outputs = [self._name, self._vectors.name]
        grids = [np.zeros((0, WIDTH, SIDE, SIDE), np.float32)]
        vectors = [np.zeros((0, self._vectors.shape[1]), np.float32)]
        for i in range(0, len(pictures), IMAGE_BATCH):
            grid, vector = self._session.run(outputs, {"pictures": pictures[i : i + IMAGE_BATCH]})
            grids.append(grid)  # (n, 1280, 7, 7)
            vectors.append(vector)
        rows = np.concatenate(grids).reshape(-1, WIDTH, PLACES).transpose(0, 2, 1)
        return np.ascontiguousarray(rows), np.concatenate(vectors)


def _declared(name: bytes) -> bytes:
    """A ModelProto that holds nothing but the output `name`, (N, 1280, 7, 7) float32."""
    sizes = [_field(2, b"N"), *(b"\x08" + _varint(size) for size in (WIDTH, SIDE, SIDE))]  # Dimension
    shape = b"".join(_field(1, size) for size in sizes)  # TensorShapeProto
    tensor = _field(1, b"\x08\x01" + _field(2, shape))  # TypeProto, of float
    return _field(7, _field(12, _field(1, name) + _field(2, tensor)))  # ModelProto.graph.output


def _field(number: int, data: bytes) -> bytes:
    """A protobuf field that holds bytes or a message."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


GRAPH = "talk.onnx"
TOKENIZER = "talk-tokenizer.json"
CONFIG = "talk.json"
FILES = (IMAGE, GRAPH, TOKENIZER, CONFIG)  # what the answers depend on
BATCH = 16  # requests
CLOSENESS = 5.0  # by CIDEr on pictures held out the best of 0, 2, 5, 10, 20 and 40
WORDLESS = {  # of models that describe a picture when nothing is asked
    "short": CaptionPreset("", 20, beams=3, length_penalty=0.0),
    "normal": CaptionPreset("", 40, beams=3),
    "long": CaptionPreset("", 60, beams=3, length_penalty=2.0),
}


class Prompts:
    """What is said to the model: `<user>`, 49 places a picture, the question in lower case, `<reply>`."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library knows no other
            raise VlmkitError(f"{path}: {error}", "install vlmkit again") from None
        self._tokenizer.encode_special_tokens = True  # marks that a question spells out are plain letters
        self.user, self.reply, self.end = (self._mark(path, mark) for mark in ("<user>", "<reply>", "</s>"))

    def _mark(self, path: Path, mark: str) -> int:
        found = self._tokenizer.token_to_id(mark)
        if found is None:
            raise VlmkitError(f"{path} has no token {mark}", "install vlmkit again")
        return found

    def head(self, pictures: int, system: str = "") -> list[int]:
        """What several questions have in common."""
        before = [self.user, *self._ids(system)] if system else []
        return [*before, self.user] + [PLACE] * (PLACES * pictures)

    def tail(self, question: str, start: str = "") -> list[int]:
        return [*self._ids(question), self.reply, *self._ids(start)]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text.lower(), add_special_tokens=False).ids

    def text(self, tokens: list[int], start: str = "") -> str:
        """The reply: `start` as it was given, then what the model made of it."""
        if not start:
            return self._tokenizer.decode(tokens).strip()
        before = self._ids(start)
        known = self._tokenizer.decode(before)
        return start + self._tokenizer.decode(before + tokens).removeprefix(known)


class Talk:
    """The small vision-language model of `mini`, or one that pack_talk made."""

    device = "cpu"
    size = SIZE
    tasks = ("answer",)
    captions: ClassVar = {
        "short": replace(WORDLESS["short"], flip_augment=True),
        "normal": replace(WORDLESS["normal"], beams=8, clip_rerank_weight=CLOSENESS, flip_augment=True),
        "long": replace(WORDLESS["long"], flip_augment=True),
    }

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware) -> None:
        import orjson

        folder = checkpoint.folder
        if hardware.device not in ("auto", "cpu"):
            raise VlmkitError(f"mini runs on the CPU, not on {hardware.device}", "leave --device out")
        threads = hardware.threads or len(os.sched_getaffinity(0))
        try:
            config = orjson.loads((folder / CONFIG).read_bytes())
            self._context = int(config["context"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VlmkitError(f"{folder}: not a whole model ({error})", "make or install it again") from None
        self.batch = BatchSize(BATCH)
        self._prompts = Prompts(folder / TOKENIZER)
        self._decoder = Decoder(folder / GRAPH, threads)
        self._folder, self._threads = folder, threads
        self._features: Features | None = None  # opened for the first picture
        self._mini: Mini | None = None  # for the first captions

    def preprocess(self, image: "Image") -> "np.ndarray":
        return preprocess(image)

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer | RequestError]:
        tails = [self._prompts.tail(request.prompt, request.start) for request in requests]
        rooms = [
            self._context - len(self._prompts.head(len(request.all_pictures()), request.system)) - len(tail)
            for request, tail in zip(requests, tails, strict=True)
        ]
        answers: list[Answer | RequestError] = [
            RequestError(
                f"{self._context - room} tokens with its pictures, more than the {self._context} of the model",
                "shorten the question or show fewer pictures",
            )
            for room in rooms
        ]
        fit = [i for i, room in enumerate(rooms) if room > 0]
        if fit:
            limits = [min(rooms[i], sampling.max_tokens) for i in fit]
            replies = self._replies([requests[i] for i in fit], [tails[i] for i in fit], limits, sampling)
            for i, (tokens, ended) in zip(fit, replies, strict=True):
                text = self._prompts.text(tokens, requests[i].start)
                answers[i] = Answer(text, "stop" if ended else "length", len(tokens) + ended)
        return answers

    def stream(self, request: Request, sampling: Sampling, say: Callable[[str], None]) -> Answer | RequestError:
        """Whole: it takes no longer than a glance."""
        (answer,) = self.answer([request], sampling)
        if isinstance(answer, Answer):
            say(answer.text)
        return answer

    def _replies(
        self, requests: list[Request], tails: list[list[int]], limits: list[int], sampling: Sampling
    ) -> list[Reply]:
        import numpy as np

        past, rows, vectors = self._heads(requests, sampling.flip_augment)
        logits, past = self._decoder(_padded(tails), past, rows)

        def step(tokens: "np.ndarray", rows: "np.ndarray") -> "np.ndarray":
            nonlocal past
            logits, past = self._decoder(tokens[:, None], past, rows)
            return logits

        end = self._prompts.end
        if sampling.temperature > 0:
            generators = [np.random.default_rng([sampling.seed, request.number]) for request in requests]
            return one_by_one(step, logits, at_random(sampling.temperature, sampling.top_p, generators), end, limits)
        if sampling.beams > 1:
            penalty = sampling.length_penalty
            found = beam_search(step, logits, end, limits, beams=sampling.beams, length_penalty=penalty)
            if sampling.clip_rerank_weight:
                seen = [vectors[row] for row in rows]
                return self._closest(requests, found, seen, sampling.clip_rerank_weight)
            return [beams[0][1] for beams in found]
        return one_by_one(step, logits, likeliest, end, limits)

    def _closest(
        self,
        requests: list[Request],
        found: "list[list[tuple[float, Reply]]]",
        seen: "list[np.ndarray | None]",
        clip_rerank_weight: float,
    ) -> list[Reply]:
        """The reply of each request with the greatest sum of score and closeness to its one picture, by mini itself."""
        if self._mini is None:
            self._mini = Mini(hardware=Hardware(threads=self._threads))
        texts = [
            [self._prompts.text(reply.tokens, request.start) for _, reply in beams]
            for request, beams in zip(requests, found, strict=True)
        ]
        vectors = iter(self._mini.embed_texts([text for some in texts for text in some]))
        chosen = []
        for beams, picture in zip(found, seen, strict=True):
            said = list(islice(vectors, len(beams)))
            near = [0.0 if picture is None else float(vector @ picture) for vector in said]
            totals = [score + clip_rerank_weight * cosine for (score, _), cosine in zip(beams, near, strict=True)]
            chosen.append(beams[totals.index(max(totals))][1])
        return chosen

    def _heads(self, requests: list[Request], flip_augment: bool) -> "tuple[Past, np.ndarray, list[np.ndarray | None]]":
        """The beginnings of all prompts, each distinct one once, which of them each request has, and the vector of its
        picture where it has one picture.
        """
        import numpy as np

        keys = [(request.system, *(picture.tobytes() for picture in request.all_pictures())) for request in requests]
        distinct = dict(zip(keys, requests, strict=True))
        order = {key: row for row, key in enumerate(distinct)}
        shown = [request.all_pictures() for request in distinct.values()]
        stack = [picture for pictures in shown for picture in pictures]
        if stack and self._features is None:
            self._features = Features(self._folder, self._threads)
        grid, vectors = (
            self._features.with_vectors(np.stack(stack), flip_augment) if stack and self._features else (None, ())
        )
        each = iter(vectors)
        seen = [[next(each) for _ in pictures] for pictures in shown]
        heads = [self._prompts.head(len(request.all_pictures()), request.system) for request in distinct.values()]
        _, past = self._decoder(_padded(heads), grid=grid)
        rows = np.array([order[key] for key in keys])
        return past, rows, [some[0] if len(some) == 1 else None for some in seen]


def _padded(rows: list[list[int]]) -> "np.ndarray":
    """(N, L) int64, padding on the left."""
    import numpy as np

    length = max(map(len, rows))
    return np.array([[PADDING] * (length - len(row)) + row for row in rows], np.int64)
