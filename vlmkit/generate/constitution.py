"""--constitution: answers that are judged by written principles, and revised where that makes them better.

After constitutional AI's critique and revision (Bai and others, 2022), with one model in all parts.
"""

import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.generate.gate import HeadRule, read_rule
from vlmkit.io.files import read_text
from vlmkit.models.types import Answer, ChatModel, Reply, Request, RequestError, Sampling

DEFAULT = Path(__file__).with_name("constitution.toml")
TOP_SCORE = 10
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
    """One aspect by which answers are judged: the name and weight of its score, and its principles."""

    name: str
    weight: float
    principles: list[str]

    def listed(self) -> str:
        return "\n".join(f"- {principle}" for principle in self.principles)


@dataclass(frozen=True, slots=True)
class Constitution:
    """`gate`: questions by reason, on which a request is declined, and `heads` for its pictures; `aspects`: what an
    answer is judged by.
    """

    gate: dict[str, str]
    aspects: list[Aspect]
    heads: list[HeadRule] = field(default_factory=list)


def read_constitution(name: str) -> Constitution:
    """The constitution in a TOML file, or that of vlmkit with `name` default. Raises VlmkitError."""
    remedy = f"write it like {DEFAULT}"
    try:
        file = DEFAULT if name == "default" else name
        return _parsed(tomllib.loads(read_text(file, remedy)), os.path.dirname(file))
    except ValueError as error:
        raise VlmkitError(f"--constitution {name}: {error}", remedy) from None


def _parsed(tables: dict[str, Any], folder: str) -> Constitution:
    gate = tables.pop("gate", {})
    aspects = [_aspect(name, table if isinstance(table, dict) else {}) for name, table in tables.items()]
    if not isinstance(gate, dict) or not all(isinstance(entry, str | dict) for entry in gate.values()):
        raise ValueError("gate is not a table of questions")
    if not sum(aspect.weight for aspect in aspects) > 0:
        raise ValueError("no aspect has a weight")
    heads = [read_rule(reason, entry, folder) for reason, entry in gate.items() if isinstance(entry, dict)]
    return Constitution({reason: text for reason, text in gate.items() if isinstance(text, str)}, aspects, heads)


def _aspect(name: str, table: dict[str, Any]) -> Aspect:
    weight, principles = table.get("weight", 1.0), table.get("principles")
    listed = isinstance(principles, list) and principles and all(isinstance(text, str) for text in principles)
    if not listed or isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise ValueError(f"{name} needs a list of principles and a weight")
    return Aspect(name, float(weight), list(principles or ()))


def answer_by_constitution(
    model: ChatModel, requests: Sequence[Request], sampling: Sampling, constitution: Constitution
) -> list[Reply | RequestError]:
    """Each request's answer: initial, criticised by aspect, revised, and the one of both that scores higher."""
    found: dict[int, Reply | RequestError] = {}
    rest = list(range(len(requests)))
    for reason, question in constitution.gate.items():
        asked = [_about(requests[i], GATE, question=requests[i].prompt, gate=question) for i in rest]
        for i, answer in zip(rest, model.answer(asked, sampling), strict=True):
            if isinstance(answer, RequestError):
                found[i] = answer
            elif answer.text.strip().lower().startswith("yes"):
                text = f"I would rather not answer this ({reason}). {answer.text.strip()}"
                found[i] = Reply(replace(answer, text=text), {"declined": reason})
        rest = [i for i in rest if i not in found]
    for i, answer in zip(rest, model.answer([requests[i] for i in rest], sampling) if rest else [], strict=True):
        if isinstance(answer, RequestError):
            found[i] = answer
        else:
            found[i] = _better(model, requests[i], answer, sampling, constitution.aspects)
    return [found[i] for i in range(len(requests))]


def _about(request: Request, form: str, **parts: str) -> Request:
    return replace(request, prompt=form.format(**parts), start="", system="")


def _by_aspect(
    model: ChatModel, request: Request, form: str, answer: str, sampling: Sampling, aspects: list[Aspect]
) -> dict[str, str]:
    """The model's criticism of `answer` by aspect; aspects for which the request fails are left out."""
    facts = {"question": request.prompt, "answer": answer}
    asked = [_about(request, form, **facts, aspect=a.name, principles=a.listed()) for a in aspects]
    replies = model.answer(asked, sampling)
    texts = ["" if isinstance(reply, RequestError) else " ".join(reply.text.split()) for reply in replies]
    return {a.name: text for a, text in zip(aspects, texts, strict=True)}


def _better(
    model: ChatModel, request: Request, initial: Answer, sampling: Sampling, aspects: list[Aspect]
) -> Reply | RequestError:
    """The initial answer or its revision, whichever scores higher; a revision that lacks a score is not kept."""
    critique = _by_aspect(model, request, CRITIQUE, initial.text, sampling, aspects)
    listed = "\n".join(f"- {name}: {text}" for name, text in critique.items())
    revision = _about(request, REVISION, question=request.prompt, answer=initial.text, critique=listed)
    (revised,) = model.answer([revision], sampling)
    if isinstance(revised, RequestError):
        return revised
    scores = {
        "initial": _scores(model, request, initial.text, sampling, aspects),
        "revised": _scores(model, request, revised.text, sampling, aspects),
    }
    before, after = scores["initial"]["total"], scores["revised"]["total"]
    better = before is not None and after is not None and after > before
    fields = {"initial": initial.text, "critique": critique, "revised": revised.text, "scores": scores}
    kept, other = (revised, initial) if better else (initial, revised)
    reply = Reply(kept, fields)
    if before is None or after is None or after == before or kept.text == other.text:
        return reply
    return replace(reply, chosen=kept.text, rejected=other.text)


def _scores(
    model: ChatModel, request: Request, answer: str, sampling: Sampling, aspects: list[Aspect]
) -> dict[str, float | None]:
    """0 to 1 by aspect, None where the model gave no number; `total` is the weighted mean, None if one is missing."""
    texts = _by_aspect(model, request, SCORE, answer, replace(sampling, temperature=0.0), aspects)
    scores = {name: _number(text) for name, text in texts.items()}
    weighted = [(a.weight, scores[a.name]) for a in aspects if a.weight > 0]
    known = [weight * score for weight, score in weighted if score is not None]
    total = sum(known) / sum(weight for weight, _ in weighted) if len(known) == len(weighted) else None
    return scores | {"total": total}


def _number(text: str) -> float | None:
    match = NUMBER.search(text)
    return float(match[0]) / TOP_SCORE if match and float(match[0]) <= TOP_SCORE else None
