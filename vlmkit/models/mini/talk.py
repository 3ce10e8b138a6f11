"""`mini` answers questions and describes pictures, by ONNX Runtime alone.

Its image tower sees 7 x 7 places, which stand in the text as so many words before the question. Pictures that several
requests share are read once. Of a conversation it knows the pictures, not what was said. How it was made and what it is
good for stands in TALK_CARD.md.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vlmkit.errors import VlmkitError
from vlmkit.models import Hardware
from vlmkit.models.batch import BatchSize
from vlmkit.models.chat import Answer, CaptionStyle, Request, Sampling, Unanswerable
from vlmkit.models.find import Checkpoint
from vlmkit.models.mini import SIZE, Mini, preprocess
from vlmkit.models.mini.decoder import PADDING, PLACE, Decoder, Past
from vlmkit.models.mini.features import IMAGE, PLACES, Features
from vlmkit.models.mini.generation import Reply, at_random, beam_search, likeliest, one_by_one

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

GRAPH = "talk.onnx"
TOKENIZER = "talk-tokenizer.json"
CONFIG = "talk.json"
FILES = (IMAGE, GRAPH, TOKENIZER, CONFIG)  # what the answers depend on
BATCH = 16  # requests
CLOSENESS = 5.0  # by CIDEr on pictures held out the best of 0, 2, 5, 10, 20 and 40
WORDLESS = {  # of models that describe a picture when nothing is asked
    "short": CaptionStyle("", 20, beams=3, length_penalty=0.0),
    "normal": CaptionStyle("", 40, beams=3),
    "long": CaptionStyle("", 60, beams=3, length_penalty=2.0),
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
        "short": replace(WORDLESS["short"], mirrored=True),
        "normal": replace(WORDLESS["normal"], beams=8, closeness=CLOSENESS, mirrored=True),
        "long": replace(WORDLESS["long"], mirrored=True),
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

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer | Unanswerable]:
        tails = [self._prompts.tail(request.prompt, request.start) for request in requests]
        rooms = [
            self._context - len(self._prompts.head(len(request.all_pictures()), request.system)) - len(tail)
            for request, tail in zip(requests, tails, strict=True)
        ]
        answers: list[Answer | Unanswerable] = [
            Unanswerable(
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

    def stream(self, request: Request, sampling: Sampling, say: Callable[[str], None]) -> Answer | Unanswerable:
        """Whole: it takes no longer than a glance."""
        (answer,) = self.answer([request], sampling)
        if isinstance(answer, Answer):
            say(answer.text)
        return answer

    def _replies(
        self, requests: list[Request], tails: list[list[int]], limits: list[int], sampling: Sampling
    ) -> list[Reply]:
        import numpy as np

        past, rows, vectors = self._heads(requests, sampling.mirrored)
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
            if sampling.closeness:
                seen = [vectors[row] for row in rows]
                return self._closest(requests, found, seen, sampling.closeness)
            return [beams[0][1] for beams in found]
        return one_by_one(step, logits, likeliest, end, limits)

    def _closest(
        self,
        requests: list[Request],
        found: "list[list[tuple[float, Reply]]]",
        seen: "list[np.ndarray | None]",
        closeness: float,
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
            totals = [score + closeness * cosine for (score, _), cosine in zip(beams, near, strict=True)]
            chosen.append(beams[totals.index(max(totals))][1])
        return chosen

    def _heads(self, requests: list[Request], mirrored: bool) -> "tuple[Past, np.ndarray, list[np.ndarray | None]]":
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
            self._features.with_vectors(np.stack(stack), mirrored) if stack and self._features else (None, ())
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
