"""The chat model of `mini`: answers and captions by ONNX Runtime alone.

The image tower gives a 7 x 7 grid of features, which are 49 tokens in the prompt, before the question. Pictures
that several requests share are encoded once. Of a conversation it gets the pictures, not the text. How it was made and
what it is good for is described in vlmkit/models/mini/TALK_CARD.md.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.models.batching import BatchSize
from vlmkit.models.chat.confidence import calibrated, mean_probability
from vlmkit.models.chat.decoding import Generated, beam_search, decode, greedy, sampler
from vlmkit.models.chat.language import foreign_words
from vlmkit.models.embedders.mini import IMAGE_BATCH, SIZE, Mini, mini_threads, open_graph, open_tokenizer, preprocess
from vlmkit.models.resolve import MINI_FILES, MINI_FOLDER, Checkpoint, better_chat_model
from vlmkit.models.types import (
    NAMED_WORDS,
    PROMPTLESS_CAPTIONS,
    Answer,
    ChatModel,
    Hardware,
    Request,
    RequestError,
    Sampling,
)

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime
    from PIL.Image import Image
    from tokenizers import Tokenizer

IMAGE, GRAPH, TOKENIZER, CONFIG = "image.onnx", "talk.onnx", "talk-tokenizer.json", "talk.json"
SIDE, WIDTH = 7, 1280  # of the grid of features
PLACES = SIDE * SIDE
PLACE = -1  # among token ids: a place of a picture
PADDING = -2
HALF = "\ufffd"  # a character of which more bytes are to come
MASKED = -1e9  # added to the score of a token that must not be attended to
BATCH = 16  # requests
LIMITS = "knows people and dogs outdoors, rooms and drawn shapes, and guesses the rest"
UNSURE = 0.5  # below it an answer is more often wrong than right
POLYGLOT = "Qwen/Qwen2.5-VL-3B-Instruct"  # knows many languages
RERANK_WEIGHT = 5.0  # by CIDEr on pictures held out the best of 0, 2, 5, 10, 20 and 40
POOLING = re.compile(rb"\x0a.(?P<name>n\d+)\x12.n\d+\x22\x11GlobalAveragePool", re.DOTALL)  # a NodeProto of ONNX


class Cache(NamedTuple):
    """Keys and values by layer of N rows of T tokens, and which of the tokens are not padding (N, T)."""

    values: "list[onnxruntime.OrtValue]"
    real: "np.ndarray"


class Decoder:
    """The language model, talk.onnx (see vlmkit.recipes.mini.export_chat): tokens in, logits of the next one out."""

    def __init__(self, path: Path, threads: int) -> None:
        self._session = open_graph(path, threads)
        self._cached = {node.name: node.shape for node in self._session.get_inputs()[5:]}
        self._outputs = [node.name for node in self._session.get_outputs()]

    def __call__(
        self,
        ids: "np.ndarray",
        cache: Cache | None = None,
        rows: "np.ndarray | None" = None,
        grid: "np.ndarray | None" = None,
    ) -> "tuple[np.ndarray, Cache]":
        """Logits (N, V) of what follows `ids` (N, L), and the cache with them.

        Row i of `ids` (padding on the left) follows row `rows[i]` of `cache`, or row i without `rows`. The places of
        `grid` (M, 49, 1280) stand where `ids` has PLACE, in order.
        """
        import numpy as np
        from onnxruntime import OrtValue

        count, length = ids.shape
        cache = cache or self._empty_cache(count)
        rows = np.arange(count) if rows is None else rows
        real = np.concatenate([cache.real[rows], ids != PADDING], axis=1)  # (N, S)
        positions = np.maximum(real.cumsum(1)[:, -length:] - 1, 0)
        attended = real[:, None, :] & np.tri(length, real.shape[1], real.shape[1] - length, dtype=bool)  # (N, L, S)
        inputs = {
            "ids": np.where(ids == PADDING, 0, ids).astype(np.int64),
            "positions": positions.astype(np.int64),
            "mask": np.where(attended, np.float32(0), np.float32(MASKED)),
            "rows": rows.astype(np.int64),
            "grid": np.zeros((0, PLACES, WIDTH), np.float32) if grid is None else grid,
        }
        values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
        values |= dict(zip(self._cached, cache.values, strict=True))
        logits, *new = self._session.run_with_ort_values(self._outputs, values)
        return logits.numpy(), Cache(new, real)

    def _empty_cache(self, count: int) -> Cache:
        import numpy as np
        from onnxruntime import OrtValue

        sizes = {"P": count, "T": 0}
        shapes = [[sizes.get(size, size) for size in shape] for shape in self._cached.values()]
        values = [OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) for shape in shapes]
        return Cache(values, np.zeros((count, 0), bool))


class Features:
    """The grid of features of pictures, from the `image.onnx` in a folder of `mini`.

    The graph gives the vector of a picture alone. The grid before its pooling becomes a second output when the graph is
    opened: serialized protobuf messages that follow each other merge (Protocol Buffers, "Encoding"), so a few bytes
    behind those of the file declare it. The file, and so the identity of `mini`, stay as they are.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        path = folder / IMAGE
        try:
            found = POOLING.search(path.read_bytes())
        except OSError as error:
            raise VlmkitError(f"{path}: {error.strerror}", "reinstall vlmkit") from None
        if found is None:
            raise VlmkitError(f"{path} has no grid of features", "make it with vlmkit.recipes.mini.train_embedder")
        self._name = found["name"].decode()
        self._session = open_graph(path, threads, _output(found["name"]))
        self._vectors = self._session.get_outputs()[0]

    def __call__(self, pictures: "np.ndarray") -> "np.ndarray":
        """(N, 224, 224, 3) uint8 -> (N, 49, 1280) float32, row by row; 0 to 6, as the last activation is ReLU6."""
        return self.with_vectors(pictures)[0]

    def with_vectors(self, pictures: "np.ndarray", flip_augment: bool = False) -> "tuple[np.ndarray, np.ndarray]":
        """The same, and the vectors that `mini` embeds the pictures as, (N, D) float32.

        With `flip_augment` both are the means over a picture and its mirror image, whose grid is flipped back.
        """
        import numpy as np

        if flip_augment:
            grid, vectors = self.with_vectors(pictures)
            flipped, others = self.with_vectors(np.ascontiguousarray(pictures[:, :, ::-1]))
            back = flipped.reshape(-1, SIDE, SIDE, WIDTH)[:, :, ::-1].reshape(grid.shape)
            return (grid + back) / 2, (vectors + others) / 2
        outputs = [self._name, self._vectors.name]
        batches = [pictures[i : i + IMAGE_BATCH] for i in range(0, len(pictures), IMAGE_BATCH)]
        found = [self._session.run(outputs, {"pictures": batch}) for batch in batches]  # (n, 1280, 7, 7), (n, D)
        nothing = np.zeros((0, WIDTH, SIDE, SIDE), np.float32), np.zeros((0, self._vectors.shape[1]), np.float32)
        grid, vectors = (np.concatenate(parts) for parts in zip(nothing, *found, strict=True))
        return np.ascontiguousarray(grid.reshape(-1, WIDTH, PLACES).transpose(0, 2, 1)), vectors


def _output(name: bytes) -> bytes:
    """A serialized ModelProto with nothing but the output `name`, (N, 1280, 7, 7) float32."""

    def field(number: int, data: bytes) -> bytes:  # of less than 128 bytes
        return bytes([number << 3 | 2, len(data)]) + data

    dimensions = b"\x12\x01N", b"\x08\x80\x0a", b"\x08\x07", b"\x08\x07"  # sizes as varints
    shape = b"".join(field(1, dimension) for dimension in dimensions)  # TensorShapeProto
    tensor = field(1, b"\x08\x01" + field(2, shape))  # TypeProto, of float
    return field(7, field(12, field(1, name) + field(2, tensor)))  # ModelProto.graph.output


class Prompts:
    """The prompt: `<user>`, 49 places a picture, the question in lower case, `<reply>`."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = open_tokenizer(path)
        self._tokenizer.encode_special_tokens = True  # special tokens that a question spells out are plain letters
        self.user, self.reply, self.end = (self._special(path, token) for token in ("<user>", "<reply>", "</s>"))

    def foreign_words(self, question: str) -> list[str]:
        """The words by which a question is not English, as `language.foreign_words` finds them."""
        return foreign_words(question, self._tokenizer, self._english)

    @cached_property
    def _english(self) -> "Tokenizer":
        """The vocabulary of mini's encoder of texts, which has whole words."""
        return open_tokenizer(MINI_FOLDER / MINI_FILES["embed"][-1])

    def _special(self, path: Path, token: str) -> int:
        if (found := self._tokenizer.token_to_id(token)) is None:
            raise VlmkitError(f"{path} has no token {token}", "reinstall vlmkit")
        return found

    def head(self, pictures: int, system: str = "") -> list[int]:
        """The beginning that several prompts share."""
        before = [self.user, *self._ids(system)] if system else []
        return [*before, self.user] + [PLACE] * (PLACES * pictures)

    def tail(self, question: str, start: str = "") -> list[int]:
        return [*self._ids(question), self.reply, *self._ids(start)]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text.lower(), add_special_tokens=False).ids

    def text(self, tokens: list[int], start: str = "") -> str:
        """The reply: `start` as it was given, then the generated text."""
        if not start:
            return self._tokenizer.decode(tokens).strip()
        before = self._ids(start)
        return start + self._tokenizer.decode(before + tokens).removeprefix(self._tokenizer.decode(before))


class MiniChat(ChatModel):
    """The small vision-language model of `mini`, or one that vlmkit.recipes.mini.export_chat made.

    Of `mini`, and of what its recipe makes, it was measured how often an answer of some probability is right: its
    configuration has the `confidence`. Only these refuse what they were not trained for.
    """

    size = SIZE
    single_image = True
    captions = {  # noqa: RUF012 (read only)
        "short": replace(PROMPTLESS_CAPTIONS["short"], flip_augment=True),
        "normal": replace(PROMPTLESS_CAPTIONS["normal"], beams=8, clip_rerank_weight=RERANK_WEIGHT, flip_augment=True),
        "long": replace(PROMPTLESS_CAPTIONS["long"], flip_augment=True),
    }

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware) -> None:
        import orjson

        self._folder = checkpoint.folder
        self._threads = mini_threads(hardware)
        try:
            config = orjson.loads((self._folder / CONFIG).read_bytes())
            self._context = int(config["context"])
            self._calibration = config.get("confidence")
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"{self._folder} is not a complete mini model ({error})"
            raise VlmkitError(what, "make or install it again") from None
        if self._calibration:
            self.caution = f"{checkpoint.name} {LIMITS}; better: {better_chat_model()}"
            self.unsure_below, self.needs_picture = UNSURE, True
        self.batch = BatchSize(BATCH)
        self._prompts = Prompts(self._folder / TOKENIZER)
        self._decoder = Decoder(self._folder / GRAPH, self._threads)

    @cached_property
    def _features(self) -> Features:
        return Features(self._folder, self._threads)

    @cached_property
    def _embedder(self) -> Mini:
        return Mini(hardware=Hardware(threads=self._threads))

    def preprocess(self, image: "Image") -> "np.ndarray":
        return preprocess(image)

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer | RequestError]:
        replies = zip(requests, self.replies(requests, sampling), strict=True)
        return [r if isinstance(r, RequestError) else self._answer(request, r) for request, r in replies]

    def stream(self, request: Request, sampling: Sampling, say: Callable[[str], None]) -> Answer | RequestError:
        tokens: list[int] = []
        said = ""

        def heard(token: int) -> None:
            nonlocal said
            tokens.append(token)
            text = self._prompts.text(tokens, request.start)
            if text.startswith(said) and text != said and not text.endswith(HALF):
                say(text[len(said) :])
                said = text

        (reply,) = self.replies([request], replace(sampling, beams=1), heard)
        if isinstance(reply, RequestError):
            return reply
        answer = self._answer(request, reply)
        if rest := answer.text[len(said) :]:
            say(rest)
        return answer

    def replies(
        self, requests: Sequence[Request], sampling: Sampling, heard: Callable[[int], None] | None = None
    ) -> list[Generated | RequestError]:
        """The tokens of one answer for each request, in order; `heard` is called with each, but for beams."""
        tails = [self._prompts.tail(request.prompt, request.start) for request in requests]
        lengths = [*map(self._length, requests)]
        refused = [self._refusal(*each) for each in zip(requests, lengths, strict=True)]
        fit = [i for i, refusal in enumerate(refused) if refusal is None]
        if not fit:
            return [*filter(None, refused)]
        limits = [min(self._context - lengths[i], sampling.max_tokens) for i in fit]
        made = iter(self._generate([requests[i] for i in fit], [tails[i] for i in fit], limits, sampling, heard))
        return [refusal or next(made) for refusal in refused]

    def _length(self, request: Request) -> int:
        """The number of tokens of its prompt."""
        head = self._prompts.head(len(request.all_pictures()), request.system)
        return len(head) + len(self._prompts.tail(request.prompt, request.start))

    def _refusal(self, request: Request, length: int) -> RequestError | None:
        """Why a request of so many tokens is not answered."""
        if length >= self._context:
            what = f"{length} tokens with its pictures, more than the {self._context} of the model"
            return RequestError(what, "shorten the question or show fewer pictures")
        if not self._calibration or request.schema is not None:  # a schema is a part of the prompt
            return None
        for what, text in ("the question", request.prompt), ("how the text begins", request.start):
            if words := self._prompts.foreign_words(text):
                lacks = f"{what} is not in English that the model knows: it lacks {', '.join(words[:NAMED_WORDS])}"
                return RequestError(lacks, f"ask in English, or ask a model of many languages: -m {POLYGLOT}")
        return None

    def _answer(self, request: Request, reply: Generated) -> Answer:
        count = len(reply.tokens) + reply.ended
        if self._calibration and request.prompt:
            confidence: float | None = calibrated(reply.log_probability, **self._calibration)
        else:
            confidence = mean_probability(reply.log_probability, count)
        text, finish = self.text(reply, request.start), "stop" if reply.ended else "length"
        return Answer(text, finish, count, confidence=confidence, prompt_tokens=self._length(request))

    def text(self, reply: Generated, start: str = "") -> str:
        return self._prompts.text(reply.tokens, start)

    def _generate(
        self,
        requests: list[Request],
        tails: list[list[int]],
        limits: list[int],
        sampling: Sampling,
        heard: Callable[[int], None] | None,
    ) -> list[Generated]:
        import numpy as np

        cache, rows, vectors = self._encode_heads(requests, sampling.flip_augment)
        logits, cache = self._decoder(_padded(tails), cache, rows)

        def step(tokens: "np.ndarray", rows: "np.ndarray") -> "np.ndarray":
            nonlocal cache
            logits, cache = self._decoder(tokens[:, None], cache, rows)
            return logits

        end = self._prompts.end
        bare = [i for i, request in enumerate(requests) if not request.start]  # whose answer may not be empty
        if sampling.beams == 1 or sampling.temperature > 0:
            logits[bare, end] = -np.inf
        if sampling.temperature > 0:
            generators = [np.random.default_rng([sampling.seed, request.number]) for request in requests]
            return decode(step, logits, sampler(sampling.temperature, sampling.top_p, generators), end, limits, heard)
        if sampling.beams == 1:
            return decode(step, logits, greedy, end, limits, heard)
        penalty = sampling.length_penalty
        beams = beam_search(step, logits, end, limits, bare, beams=sampling.beams, length_penalty=penalty)
        if sampling.clip_rerank_weight:
            return self._rerank(requests, beams, vectors, sampling.clip_rerank_weight)
        return [found[0][1] for found in beams]

    def _rerank(
        self,
        requests: list[Request],
        beams: list[list[tuple[float, Generated]]],
        vectors: "list[np.ndarray | None]",
        weight: float,
    ) -> list[Generated]:
        """For each request the beam with the greatest score + weight x cosine of its text and its one picture."""
        texts = [
            self._prompts.text(reply.tokens, request.start)
            for request, found in zip(requests, beams, strict=True)
            for _, reply in found
        ]
        embedded = iter(self._embedder.embed_texts(texts))
        chosen = []
        for found, picture in zip(beams, vectors, strict=True):
            cosines = [0.0 if picture is None else float(text @ picture) for text in islice(embedded, len(found))]
            totals = [score + weight * cosine for (score, _), cosine in zip(found, cosines, strict=True)]
            chosen.append(found[totals.index(max(totals))][1])
        return chosen

    def _encode_heads(
        self, requests: list[Request], flip_augment: bool
    ) -> "tuple[Cache, np.ndarray, list[np.ndarray | None]]":
        """Each distinct beginning of a prompt in the cache; for each request its row there, and the vector of its
        picture where it has one picture.
        """
        import numpy as np

        keys = [(request.system, *(picture.tobytes() for picture in request.all_pictures())) for request in requests]
        distinct = dict(zip(keys, requests, strict=True))
        pictures = [request.all_pictures() for request in distinct.values()]
        stack = [picture for some in pictures for picture in some]
        grid, vectors = self._features.with_vectors(np.stack(stack), flip_augment) if stack else (None, ())
        remaining = iter(vectors)
        groups = [list(islice(remaining, len(some))) for some in pictures]
        heads = [self._prompts.head(len(request.all_pictures()), request.system) for request in distinct.values()]
        _, cache = self._decoder(_padded(heads), grid=grid)
        order = {key: row for row, key in enumerate(distinct)}
        rows = np.array([order[key] for key in keys])
        return cache, rows, [groups[row][0] if len(groups[row]) == 1 else None for row in rows]


def _padded(rows: list[list[int]]) -> "np.ndarray":
    """(N, L) int64, padding on the left."""
    import numpy as np

    length = max(map(len, rows))
    return np.array([[PADDING] * (length - len(row)) + row for row in rows], np.int64)
