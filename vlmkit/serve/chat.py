"""/v1/chat/completions: answers about pictures and texts, whole or as they come."""

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import orjson
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from vlmkit import __version__
from vlmkit.errors import VlmkitError
from vlmkit.generate.pipeline import GenerateOptions, limits
from vlmkit.generate.prepare import preprocessed
from vlmkit.generate.questions import ChatSample
from vlmkit.generate.schema import answer_by_schema, check_schema
from vlmkit.models.types import Answer, ChatModel, Reply, Request, RequestError, Sampling
from vlmkit.serve.chat_stream import Stopper, streamed
from vlmkit.serve.errors import ApiError, explained
from vlmkit.serve.json import JsonResponse
from vlmkit.serve.messages import read_messages
from vlmkit.serve.models import ALONE, Loaded
from vlmkit.serve.operations import MODEL, STRING, Operation, Schema, object_of, unused, warned
from vlmkit.serve.service import Service
from vlmkit.serve.vectors import all_of

MAX_TOKENS = 256
SEEDS = 1 << 32
NULL: Schema = {"type": "null"}
STOP: Schema = {"type": "string", "maxLength": 1000}
PARTS: Schema = {"type": "array", "items": {"type": "object"}}
MESSAGE = object_of(["role"], role=STRING, content={"anyOf": [STRING, PARTS]}, name=STRING)
COUNT: Schema = {"type": ["integer", "null"], "minimum": 1, "maximum": 100_000}
FORM = object_of(["type"], type={"enum": ["text", "json_object", "json_schema"]}, json_schema={"type": "object"})
SCHEMA = object_of(
    ["messages"],
    model=MODEL,
    messages={"type": "array", "items": MESSAGE, "minItems": 1},
    stream={"type": ["boolean", "null"]},
    stream_options={"anyOf": [object_of(include_usage={"type": ["boolean", "null"]}), NULL]},
    max_tokens=COUNT,
    max_completion_tokens=COUNT,
    temperature={"type": ["number", "null"], "minimum": 0, "maximum": 2, "description": "0 by default."},
    top_p={"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
    seed={"type": ["integer", "null"]},
    stop={"anyOf": [STOP, {"type": "array", "items": STOP, "maxItems": 16}, NULL]},
    n={"type": ["integer", "null"], "description": "1: one answer to a request."},
    response_format={"anyOf": [FORM, NULL]},
    user={"type": ["string", "null"]},
)
UNSUPPORTED = ("tools", "functions", "audio", "logprobs", "logit_bias")


@dataclass(slots=True)
class Call:
    """One request that is being answered. `schema` is that of the answer, which has to match it if it is `strict`."""

    service: Service
    loaded: Loaded[ChatModel]
    name: str
    request: Request
    sampling: Sampling
    stops: list[str]
    schema: dict[str, Any] | None
    strict: bool
    warnings: list[str]
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, kind: str) -> dict[str, Any]:
        told = {"model": self.loaded.model.identity, "system_fingerprint": f"vlmkit {__version__}"}
        return {"id": self.id, "object": kind, "created": self.created} | told

    def usage(self, answer: Answer) -> dict[str, int]:
        for kind, count in (("prompt", answer.prompt_tokens), ("completion", answer.tokens)):
            self.service.metrics.tokens.labels(self.name, kind).inc(count)
        total = answer.prompt_tokens + answer.tokens
        return {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.tokens, "total_tokens": total}

    async def answer(self) -> Answer:
        """The whole answer, in one batch with those that wait and are decoded the same way. Raises ApiError."""
        batcher, model = self.loaded.batcher, self.loaded.model
        if self.schema is not None:
            outcome = await batcher(ALONE, self._by_schema)
        elif self.sampling.temperature > 0:  # what is random must not depend on who else asks
            outcome = await batcher(ALONE, lambda: model.answer([self.request], self.sampling)[0])
        else:
            outcome = await batcher(self.sampling, self.request)
        answer = self.checked(outcome)
        said: list[str] = []
        stopper = Stopper(self.stops, said.append)
        stopper.put(answer.text)
        stopper.end()
        return replace(answer, text="".join(said), finish="stop" if stopper.stopped else answer.finish)

    def stream(self, to_the_end: bool) -> AsyncIterator[Any]:
        """See `streamed`. Only `to_the_end` is something known of the tokens where a stop ended the answer."""

        def work(say: Callable[[str], None]) -> Answer | RequestError:
            stopper = Stopper(self.stops, say)

            def put(text: str) -> None:
                stopper.put(text)
                if stopper.stopped and not to_the_end:
                    raise StoppedEarly

            try:
                if self.schema is None:
                    outcome = self.loaded.model.stream(self.request, self.sampling, put)
                else:
                    outcome = self._by_schema()
                    put(outcome.text if isinstance(outcome, Answer) else "")
            except StoppedEarly:
                return Answer("", "stop", 0)
            stopper.end()
            return replace(outcome, finish="stop") if stopper.stopped and isinstance(outcome, Answer) else outcome

        return streamed(self.loaded.batcher, work, self.service.settings.timeout)

    def checked(self, outcome: Answer | RequestError) -> Answer:
        """The answer. Raises ApiError where there is none."""
        if isinstance(outcome, RequestError):
            raise ApiError(400, f"{outcome}: {outcome.remedy}", code="cannot_answer", param="messages")
        if (failure := outcome.failure()) is not None:
            self.warnings.append(str(failure))
        return outcome

    def _by_schema(self) -> Answer | RequestError:
        (reply,) = answer_by_schema(self.loaded.model, [self.request], self.sampling, self.schema or {})
        if isinstance(reply, Reply) and not reply.fields["valid"]:
            what = "the answer does not match the schema"
            if self.strict:
                raise ApiError(
                    422, f"{what}: simplify it, or name another model", code="schema", param="response_format"
                )
            self.warnings.append(what)
        return reply.answer if isinstance(reply, Reply) else reply


class StoppedEarly(Exception):
    """The answer ended at a stop, and nobody asked how long it would have become."""


class Events(StreamingResponse):
    """A stream of events, at whose end the `stack` is closed."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], stack: AsyncExitStack) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)


async def chat_completions(service: Service, body: dict[str, Any]) -> Response:
    """One answer to the last message, in the light of those before."""
    if body.get("n") not in (None, 1):
        raise ApiError(400, "n must be 1: send several requests", code="invalid_value", param="n")
    if asked := next((name for name in UNSUPPORTED if body.get(name)), None):
        raise ApiError(400, f"{asked} is not supported here: leave it out", code="unsupported", param=asked)
    sample = read_messages(body["messages"])
    form = body.get("response_format") or {}
    schema, strict = await service.pictures.in_thread(lambda: _schema(form)) if form else (None, False)
    name = service.models.name_for("chat", body.get("model"))
    async with AsyncExitStack() as stack:
        loaded = await stack.enter_async_context(service.models.use("chat", name))
        request, warnings = await _request(service, loaded.model, sample)
        given = body.get("stop") or []
        stops = [stop for stop in ([given] if isinstance(given, str) else given) if stop]
        warnings += unused(body, SCHEMA)
        call = Call(service, loaded, name, request, _sampling(body), stops, schema, strict, warnings)
        if body.get("stream"):
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            return Events(_events(call, usage), stack.pop_all())  # the model stays as long as the stream
        answer = await call.answer()
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        message |= {"reasoning_content": answer.reasoning} if answer.reasoning else {}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
        reply = call.head("chat.completion") | {"choices": [choice], "usage": call.usage(answer)}
        return JsonResponse(warned(reply, call.warnings))


async def _events(call: Call, usage: bool) -> AsyncIterator[bytes]:
    """The chunks of an answer; with `usage` one more tells the tokens."""
    head = call.head("chat.completion.chunk") | ({"usage": None} if usage else {})

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event(head | {"choices": [choice]} | more)

    yield chunk({"role": "assistant", "content": ""})
    try:
        async for piece in call.stream(usage):
            if piece is None:
                yield b": the answer is not there yet\n\n"
            elif isinstance(piece, str):
                yield chunk({"content": piece})
            else:
                answer = call.checked(piece)
                thought = {"reasoning_content": answer.reasoning} if answer.reasoning else {}
                yield chunk(thought, answer.finish, **warned({}, call.warnings))
                if usage:
                    yield _event(head | {"choices": [], "usage": call.usage(answer)})
    except TimeoutError:
        what = f"the answer took longer than {call.service.settings.timeout:g} s"
        yield _event(ApiError(504, what, code="timeout").body())
    except Exception as error:  # the status is sent already
        yield _event(explained(error).body())
    yield b"data: [DONE]\n\n"


def _event(content: Any) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(content)


async def _request(service: Service, model: ChatModel, sample: ChatSample) -> tuple[Request, list[str]]:
    """The request to the model, and what it does not do for it."""
    decode = partial(preprocessed, model=model)
    opened = await all_of([service.pictures.open(part.value, decode, part.param) for part in sample.pictures])
    sample = replace(sample, pictures=[picture for picture, _ in opened])
    return GenerateOptions().request(sample, model.interleaved), list(limits(sample, model))


def _sampling(body: dict[str, Any]) -> Sampling:
    """At random only if a temperature is given; by a new seed each time if none is."""
    seed = body.get("seed")
    return Sampling(
        max_tokens=int(body.get("max_completion_tokens") or body.get("max_tokens") or MAX_TOKENS),
        temperature=float(body.get("temperature") or 0.0),
        top_p=1.0 if body.get("top_p") is None else float(body["top_p"]),
        seed=secrets.randbelow(SEEDS) if seed is None and body.get("temperature") else int(seed or 0) % SEEDS,
    )


def _schema(form: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """The schema of the answer, and whether it has to match. Raises ApiError."""
    kind = form.get("type", "text")
    if kind != "json_schema":
        return ({"type": "object"} if kind == "json_object" else None), False
    given = form.get("json_schema") or {}
    schema = given.get("schema")
    if not isinstance(schema, dict):
        what = "response_format.json_schema holds no schema"
        raise ApiError(400, what, code="invalid_value", param="response_format")
    if _has_pattern(schema):  # a client's pattern can keep a core busy for years
        what = "a schema with pattern or patternProperties is not supported here"
        raise ApiError(400, what, code="unsupported", param="response_format")
    try:
        check_schema(schema, "the schema")
    except VlmkitError as error:
        raise ApiError(400, str(error), code="invalid_value", param="response_format") from None
    return schema, given.get("strict") is True


def _has_pattern(value: Any) -> bool:
    if isinstance(value, dict):
        return (
            "patternProperties" in value
            or isinstance(value.get("pattern"), str)
            or any(map(_has_pattern, value.values()))
        )
    return isinstance(value, list) and any(map(_has_pattern, value))


OPERATIONS = [
    Operation("POST", "/v1/chat/completions", chat_completions, "An answer about pictures and texts.", SCHEMA)
]
