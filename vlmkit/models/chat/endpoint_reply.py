"""What an endpoint replies, as an answer: its text, what was thought before it, and how it ended."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vlmkit.models.chat.confidence import mean_probability
from vlmkit.models.chat.endpoint_errors import LATER, Failure, Scope, reason_of
from vlmkit.models.chat.reasoning import split_reasoning
from vlmkit.models.types import Answer, RequestError

FILTERED = "blocked by the endpoint's content filter"
# Finish reasons, in small letters, of OpenAI, Gemini, Anthropic, DeepSeek and servers at home.
LENGTH = {"length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"}
BLOCKED = {"content_filter", "content_filtered", "safety", "image_safety", "recitation", "prohibited_content"}
BLOCKED |= {"blocklist", "spii", "sensitive", "refusal", "guardrail_intervened"}
BROKEN = {"error", "abort", "aborted", "cancelled", "canceled", "insufficient_system_resource", "network_error"}
BROKEN |= {"model_error", "unknown_error", "malformed_response", "timeout"}
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # keys of a message


@dataclass
class Usage:
    """Tokens that an endpoint counted."""

    prompt: int = 0
    completion: int = 0

    def add(self, reply: Any) -> None:
        found = reply.get("usage") if isinstance(reply, dict) else None
        if isinstance(found, dict):
            self.prompt += _count(found.get("prompt_tokens"))
            self.completion += _count(found.get("completion_tokens"))


@dataclass
class StreamedMessage:
    """The chunks of a streamed reply, put together as one that comes whole."""

    message: dict[str, str] = field(default_factory=dict)
    finish: str | None = None
    error: Any = None
    usage: Any = None
    count: int = 0

    def add(self, chunk: Any) -> str:
        """The text that a chunk adds."""
        self.usage = getattr(chunk, "usage", None) or self.usage
        self.error = getattr(chunk, "error", None) or self.error
        text = ""
        for choice in (getattr(chunk, "choices", None) or [])[:1]:
            self.finish = choice.finish_reason or self.finish
            self.error = getattr(choice, "error", None) or self.error
            for key in ("content", "refusal", *THOUGHTS):
                if piece := getattr(choice.delta, key, None):
                    said, thought = _parts(piece)
                    self.message[key] = self.message.get(key, "") + said
                    if thought:
                        self.message[THOUGHTS[0]] = self.message.get(THOUGHTS[0], "") + thought
                    text += said if key == "content" else ""
        self.count += bool(text)
        return text

    def whole(self) -> dict[str, Any]:
        choice = {"message": {"content": None, **self.message}, "finish_reason": self.finish, "error": self.error}
        usage = self.usage.model_dump() if hasattr(self.usage, "model_dump") else self.usage
        return {"choices": [choice], "usage": usage or {"completion_tokens": self.count}}


def read_answer(reply: Any, start: str = "") -> Answer | RequestError:
    """The first choice of a chat completion, which begins with `start`.

    Raises Failure where it broke off, and ValueError, LookupError, TypeError or AttributeError where it is none.
    """
    choice = reply["choices"][0]
    message, finish = choice["message"], str(choice.get("finish_reason") or "stop").lower()
    if message.get("refusal"):
        return RequestError(f"the model refuses: {message['refusal']}")
    if finish in BLOCKED:
        return RequestError(FILTERED)
    if choice.get("error") or finish in BROKEN:
        reason = reason_of(choice.get("error")) or reason_of(reply.get("error")) or finish
        raise Failure(f"the answer broke off: {reason}", LATER, Scope.UNKNOWN, 0.0, reason=reason)
    content = message.get("content")
    said, thought = _parts(content)
    if content and not said and not thought:
        raise ValueError("a content that is no text")
    if not said.strip() and (tool := _tool_called(message)):
        return RequestError(f"the model calls a tool, {tool}, in place of an answer", "name another model")
    reasoning, text = split_reasoning(said)
    thoughts = [*(_parts(message.get(key))[0] for key in THOUGHTS), thought, reasoning]
    if not any(thoughts):
        thoughts = [_parts(message.get("reasoning_details"))[0]]
    if text and (start := start.strip()):
        begun = text[: len(start)].lower() == start.lower()
        text = start + (text[len(start) :] if begun else f" {text}")
    usage = reply.get("usage") or {}
    answer = Answer(
        text,
        "length" if finish in LENGTH else "stop",
        _count(usage.get("completion_tokens")),
        reasoning="\n".join(dict.fromkeys(filter(None, map(str.strip, thoughts)))),
        confidence=_confidence(choice),
        prompt_tokens=_count(usage.get("prompt_tokens")),
    )
    return answer.failure() or answer


def _tool_called(message: Any) -> str:
    calls = [call.get("function") for call in message.get("tool_calls") or ()] + [message.get("function_call")]
    return ", ".join(str(call.get("name")) for call in calls if call)


def _parts(content: Any) -> tuple[str, str]:
    """(what is said, what is thought) in a text, or in a list of parts as some servers send it."""
    if isinstance(content, str):
        return content, ""
    if isinstance(content, int | float):
        return str(content), ""
    said, thought = "", ""
    for part in content if isinstance(content, list) else ():
        kind = str(part.get("type"))
        if "think" in kind or ("reason" in kind and not kind.startswith("reasoning.")):
            thought += "".join(_texts(part))
        elif kind in ("text", "output_text") or kind.startswith("reasoning."):  # the latter are of OpenRouter
            said += "".join(_texts(part))
    return said, thought


def _texts(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, list):
        for one in part:
            yield from _texts(one)
    elif isinstance(part, dict):
        for key in ("text", "thinking", "reasoning", "summary", "content"):
            yield from _texts(part.get(key))


def _confidence(choice: Any) -> float | None:
    """The geometric mean of the probabilities of the tokens, where the endpoint gives them."""
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    found = [token["logprob"] for token in tokens or () if isinstance(token.get("logprob"), int | float)]
    return mean_probability(sum(found), len(found), 4)


def _count(number: Any) -> int:
    return number if isinstance(number, int) else 0
