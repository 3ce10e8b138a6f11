"""A conversation in the words of a chat template, the same in training and for a question."""

import re
from collections.abc import Callable
from typing import Any

Apply = Callable[[list[dict[str, Any]]], str]
PROBE = "REPLY"  # stands for a reply, to find what a template writes around it
THOUGHT = re.compile(r"(?i)[<\[◁](\w*think\w*)[>\]▷]\s*[<\[◁]/\1[>\]▷]\s*")  # an empty one
OPEN_THOUGHT = re.compile(r"(?i)([<\[◁])(\w*think\w*[>\]▷])\s*\Z")


class TemplateRefusal(Exception):
    """The chat template raised an error, whose text this is."""


def render(apply: Apply, messages: list[dict[str, Any]]) -> str:
    """What `apply`, a chat template, makes of `messages`.

    A system text that the template refuses, or drops, goes before the first question. Raises TemplateRefusal.
    """
    from jinja2 import TemplateError

    reason = ""
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
    words = system if isinstance(system, str) else "".join(part.get("text", "") for part in system)
    for said in (messages, _merged(words, messages)) if words else (messages,):
        try:
            text = apply(said)
        except (TemplateError, TypeError) as error:  # a TypeError where it takes a content for another type
            reason = " ".join(str(error).split()) or type(error).__name__
            continue
        if words.strip() in text:
            return text
        reason = "it drops the system text"
    raise TemplateRefusal(reason)


def _merged(system: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`messages` without the system text, which begins the first question."""
    question, *rest = messages[1:]
    content, start = question["content"], f"{system.strip()}\n\n"
    content = start + content if isinstance(content, str) else [{"type": "text", "text": start}, *content]
    return [question | {"content": content}, *rest]


def without_thought(prompt: str) -> str:
    """`prompt` with the thought closed that a template has begun at its end, for models that were trained without."""
    begun = OPEN_THOUGHT.search(prompt)
    return f"{prompt.rstrip()}\n\n{begun[1]}/{begun[2]}\n\n" if begun else prompt


def around_reply(apply: Apply, messages: list[dict[str, Any]], prompt: str) -> tuple[str, str]:
    """(what stands between `prompt` and a reply to `messages`, what follows the reply), without empty thoughts.

    Raises TemplateRefusal where the template writes no reply.
    """
    text = render(apply, [*messages, {"role": "assistant", "content": PROBE}])
    before, found, after = text.rpartition(PROBE)
    if not found:
        raise TemplateRefusal("it writes no replies")
    return THOUGHT.sub("", before.removeprefix(prompt)) if before.startswith(prompt) else "", after
