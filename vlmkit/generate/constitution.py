"""--constitution: answers that are judged by written principles, and revised where that makes them better.

After constitutional AI's critique and revision (Bai and others, 2022), with one model in all parts.
"""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.models.types import Answer, ChatModel, Reply, Request, RequestError, Sampling

DEFAULT = Path(__file__).with_name("constitution.toml")
BEST = 10
NUMBER = re.compile(r"\d+(?:\.\d+)?")
GATE = "The question is: {question}\n{gate} Answer yes or no, and say why in one sentence."
CRITIQUE = (
    "The question was: {question}\nThe answer was: {answer}\nPrinciples of {aspect}:\n{principles}\n"
    "Say in one sentence how the answer goes against these principles, or that it does not."
)
REVISION = (
    "The question was: {question}\nThe answer was: {answer}\nIt was criticised:\n{critique}\n"
    "Write a better answer to the question. Give the answer alone."
)
SCORE = (
    "The question was: {question}\nThe answer was: {answer}\nPrinciples of {aspect}:\n{principles}\n"
    "How well does the answer follow these principles, from 0 to 10? Give the number alone."
)


@dataclass(frozen=True, slots=True)
class Aspect:
    """What answers are judged by: a score's name and weight, and the principles behind it."""

    name: str
    weight: float
    principles: list[str]

    def listed(self) -> str:
        return "\n".join(f"- {principle}" for principle in self.principles)


@dataclass(frozen=True, slots=True)
class Constitution:
    """`gate`: questions by reason, on which a request is declined; `aspects`: what an answer is judged by."""

    gate: dict[str, str]
    aspects: list[Aspect]


def read_constitution(name: str) -> Constitution:
    """The constitution in a TOML file, or that of vlmkit with `name` default. Raises VlmkitError."""
    path = DEFAULT if name == "default" else Path(name)
    remedy = f"write it like {DEFAULT}"
    try:
        told = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise VlmkitError(f"--constitution {name}: {getattr(error, 'strerror', None) or error}", remedy) from None
    gate = told.pop("gate", {})
    aspects = [_aspect(name, aspect, told[aspect], remedy) for aspect in told]
    if not isinstance(gate, dict) or not all(isinstance(text, str) for text in gate.values()):
        raise VlmkitError(f"--constitution {name}: gate is no table of questions", remedy)
    if not sum(aspect.weight for aspect in aspects) > 0:
        raise VlmkitError(f"--constitution {name} has no aspect with a weight", remedy)
    return Constitution(gate, aspects)


def _aspect(name: str, aspect: str, told: Any, remedy: str) -> Aspect:
    told = told if isinstance(told, dict) else {}
    weight, principles = told.get("weight", 1.0), told.get("principles")
    listed = isinstance(principles, list) and principles and all(isinstance(text, str) for text in principles)
    if not listed or isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise VlmkitError(f"--constitution {name}: {aspect} has no list of principles and a weight", remedy)
    return Aspect(aspect, float(weight), list(principles))


def judged(
    model: ChatModel, requests: Sequence[Request], sampling: Sampling, constitution: Constitution
) -> list[Reply | RequestError]:
    """Each request's answer: initial, criticised by aspect, revised, and the one of both that scores higher."""
    found: list[Reply | RequestError | None] = [None] * len(requests)
    rest = list(range(len(requests)))
    for reason, question in constitution.gate.items():
        asked = [_about(requests[i], GATE, question=requests[i].prompt, gate=question) for i in rest]
        for i, answer in zip(rest, model.answer(asked, sampling), strict=True):
            if isinstance(answer, RequestError):
                found[i] = answer
            elif answer.text.strip().lower().startswith("yes"):
                said = f"I would rather not answer this ({reason}). {answer.text.strip()}"
                found[i] = Reply(replace(answer, text=said), {"declined": reason})
        rest = [i for i in rest if found[i] is None]
    for i, answer in zip(rest, model.answer([requests[i] for i in rest], sampling) if rest else [], strict=True):
        if isinstance(answer, RequestError):
            found[i] = answer
        else:
            found[i] = _better(model, requests[i], answer, sampling, constitution.aspects)
    return [one for one in found if one is not None]


def _about(request: Request, form: str, **parts: str) -> Request:
    return replace(request, prompt=form.format(**parts), start="", system="")


def _better(
    model: ChatModel, request: Request, initial: Answer, sampling: Sampling, aspects: list[Aspect]
) -> Reply | RequestError:
    """The initial answer or its revision, whichever scores higher; a revision without whole scores is not kept."""
    facts = {"question": request.prompt, "answer": initial.text}
    asked = [_about(request, CRITIQUE, **facts, aspect=a.name, principles=a.listed()) for a in aspects]
    replies = model.answer(asked, sampling)
    critique = {a.name: _text(reply) for a, reply in zip(aspects, replies, strict=True)}
    listed = "\n".join(f"- {name}: {text}" for name, text in critique.items())
    (revised,) = model.answer([_about(request, REVISION, **facts, critique=listed)], sampling)
    if isinstance(revised, RequestError):
        return revised
    scores = {
        name: _scores(model, request, answer.text, sampling, aspects)
        for name, answer in (("initial", initial), ("revised", revised))
    }
    before, after = scores["initial"]["total"], scores["revised"]["total"]
    better = before is not None and after is not None and after > before
    fields = {"initial": initial.text, "critique": critique, "revised": revised.text, "scores": scores}
    kept, other = (revised, initial) if better else (initial, revised)
    told_apart = before is not None and after is not None and after != before and kept.text != other.text
    reply = Reply(kept, fields)
    return replace(reply, chosen=kept.text, rejected=other.text) if told_apart else reply


def _scores(
    model: ChatModel, request: Request, answer: str, sampling: Sampling, aspects: list[Aspect]
) -> dict[str, float | None]:
    """0 to 1 by aspect, None where the model gave no number; `total` is the weighted mean, None if one is missing."""
    facts = {"question": request.prompt, "answer": answer}
    asked = [_about(request, SCORE, **facts, aspect=a.name, principles=a.listed()) for a in aspects]
    replies = model.answer(asked, replace(sampling, temperature=0.0))
    scores = {a.name: _number(_text(reply)) for a, reply in zip(aspects, replies, strict=True)}
    weighed = [(a.weight, scores[a.name]) for a in aspects if a.weight > 0]
    known = [weight * score for weight, score in weighed if score is not None]
    whole = len(known) == len(weighed)
    return scores | {"total": sum(known) / sum(weight for weight, _ in weighed) if whole else None}


def _number(text: str) -> float | None:
    match = NUMBER.search(text)
    return float(match[0]) / BEST if match and float(match[0]) <= BEST else None


def _text(reply: Answer | RequestError) -> str:
    return "" if isinstance(reply, RequestError) else " ".join(reply.text.split())
