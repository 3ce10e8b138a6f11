"""The chat model of `mini`: answers and captions by ONNX Runtime alone.

The image tower gives a 7 x 7 grid of features, which are 49 tokens in the prompt, before the question. Pictures
that several requests share are encoded once. Of a conversation it gets the pictures, not the text. How it was made and
what it is good for is described in vlmkit/models/mini/TALK_CARD.md.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from vlmkit.models.chat.mini_graphs import PADDING, PLACE, PLACES, Branches, Cache, Decoder, Features
from vlmkit.models.embedders.mini import SIZE, Mini, mini_threads, open_tokenizer, preprocess
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
    from PIL.Image import Image
    from tokenizers import Tokenizer

GRAPH, TOKENIZER, CONFIG = "talk.onnx", "talk-tokenizer.json", "talk.json"
HALF = "\ufffd"  # a character of which more bytes are to come
BATCH = 16  # requests
LIMITS = "knows people and dogs outdoors, rooms and drawn shapes, and guesses the rest"
UNSURE = 0.5  # below it an answer is more often wrong than right
POLYGLOT = "Qwen/Qwen2.5-VL-3B-Instruct"  # knows many languages
KNOWN_TEXTS = 20_000  # whose vectors are kept, 1 KB each
RERANK_WEIGHT = 5.0  # by CIDEr on pictures held out the best of 0, 2, 5, 10, 20 and 40


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


class Look(NamedTuple):
    """The P pictures of a request: their `places` among all, their grids (P, 49, 1280), the vector of a lone one."""

    places: tuple[int, ...]
    grid: "np.ndarray | None"
    vector: "np.ndarray | None"


class MiniChat(ChatModel):
    """The small vision-language model of `mini`, or one that vlmkit.recipes.mini.export_chat made.

    Of `mini`, and of what its recipe makes, it was measured how often an answer of some probability is right: its
    configuration has the `confidence`. Only these refuse what they were not trained for.
    """

    size = SIZE
    single_image = True
    most_pictures = 1
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
        self._decoder = Decoder(self._folder / GRAPH)
        self._text_vectors: dict[str, np.ndarray] = {}

    @cached_property
    def _features(self) -> Features:
        return Features(self._folder, self._threads)

    @cached_property
    def _embedder(self) -> Mini:
        return Mini(hardware=Hardware(threads=1))  # as each part of a batch embeds its own texts

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
        """Several requests are shared out among the cores: those that share one wait for each other at every layer."""
        looks = self._look(requests, sampling.flip_augment)
        size = -(-len(requests) // self._threads)
        parts = [slice(start, start + size) for start in range(0, len(requests), size)]

        def generate(part: slice) -> list[Generated]:
            return self._generate_part(requests[part], looks[part], tails[part], limits[part], sampling, heard)

        with ThreadPoolExecutor(self._threads) as pool:
            return [reply for replies in pool.map(generate, parts) for reply in replies]

    def _look(self, requests: list[Request], flip_augment: bool) -> list[Look]:
        """What each request shows; a picture that several show is encoded once."""
        import numpy as np

        shown = [picture for request in requests for picture in request.all_pictures()]
        distinct = {picture.tobytes(): picture for picture in shown}
        if not distinct:
            return [Look((), None, None)] * len(requests)
        grid, vectors = self._features.with_vectors(np.stack(list(distinct.values())), flip_augment)
        order = {name: place for place, name in enumerate(distinct)}
        looks = []
        for request in requests:
            places = tuple(order[picture.tobytes()] for picture in request.all_pictures())
            looks.append(Look(places, grid[list(places)], vectors[places[0]] if len(places) == 1 else None))
        return looks

    def _generate_part(
        self,
        requests: list[Request],
        looks: list[Look],
        tails: list[list[int]],
        limits: list[int],
        sampling: Sampling,
        heard: Callable[[int], None] | None,
    ) -> list[Generated]:
        import numpy as np

        cache, rows = self._encode_heads(requests, looks)
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
        branches = Branches(self._decoder, cache)
        beams = beam_search(branches, logits, end, limits, bare, beams=sampling.beams, length_penalty=penalty)
        if sampling.clip_rerank_weight:
            return self._rerank(requests, beams, [look.vector for look in looks], sampling.clip_rerank_weight)
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
        embedded = iter(self._embed_texts(texts))
        chosen = []
        for found, picture in zip(beams, vectors, strict=True):
            cosines = [0.0 if picture is None else float(text @ picture) for text in islice(embedded, len(found))]
            totals = [score + weight * cosine for (score, _), cosine in zip(found, cosines, strict=True)]
            chosen.append(found[totals.index(max(totals))][1])
        return chosen

    def _embed_texts(self, texts: list[str]) -> "list[np.ndarray]":
        """Their vectors, those of earlier calls from memory: over many pictures a quarter of the beams come again."""
        if len(self._text_vectors) >= KNOWN_TEXTS:
            self._text_vectors = {}
        known = self._text_vectors  # by several threads, none of which removes any
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, self._embedder.embed_texts(new), strict=True))
        return [known[text] for text in texts]

    def _encode_heads(self, requests: list[Request], looks: list[Look]) -> "tuple[Cache, np.ndarray]":
        """Each distinct beginning of a prompt in the cache, and the row of each request there."""
        import numpy as np

        keys = [(request.system, look.places) for request, look in zip(requests, looks, strict=True)]
        distinct = dict(zip(keys, looks, strict=True))
        grids = [look.grid for look in distinct.values() if look.grid is not None]
        heads = [self._prompts.head(len(places), system) for system, places in distinct]
        _, cache = self._decoder(_padded(heads), grid=np.concatenate(grids) if grids else None)
        order = {key: row for row, key in enumerate(distinct)}
        return cache, np.array([order[key] for key in keys])


def _padded(rows: list[list[int]]) -> "np.ndarray":
    """(N, L) int64, padding on the left."""
    import numpy as np

    length = max(map(len, rows))
    return np.array([[PADDING] * (length - len(row)) + row for row in rows], np.int64)
