"""What becomes of the replies and refusals of endpoints: answers, failures of one record, and the end of a run."""

import email.utils
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import jsonl, picture, records
from hosted import Hosted
from test_endpoint import surroundings  # noqa: F401 (used by pytest)

from vlmkit.models.chat.endpoint_errors import reason_of, wait_of


def reply(body: object, status: int = 200) -> str:
    """A question that the server answers with `body`."""
    return f"reply {status} {body if isinstance(body, str) else json.dumps(body)}"


def said(content: object, finish: str | None = "stop", **message: object) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content, **message}, "finish_reason": finish}]}


def streamed(*deltas: dict[str, Any], finish: str = "stop") -> str:
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    return "".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices) + "data: [DONE]\n\n"


@pytest.fixture
def ask(vlmkit) -> Callable[..., Any]:
    def run(body: object, *arguments: object, status: int = 200, code: int = 0):
        return vlmkit("ask", reply(body, status), "--option", "retries=0", *arguments, code=code)

    return run


@pytest.mark.parametrize(
    "body",
    [
        said("<think>Red?</think>\nBlue."),
        said("Blue.", reasoning_content="Red?"),
        said("Blue.", reasoning="Red?"),
        said("Blue.", reasoning="Red?", reasoning_details=[{"type": "reasoning.text", "text": "Red?"}]),
        said([{"type": "thinking", "thinking": [{"type": "text", "text": "Red?"}]}, {"type": "text", "text": "Blue."}]),
        said("Red?\n</think>\n\nBlue."),
        said("Blue.", "END_TURN", reasoning="Red?"),
    ],
)
def test_thoughts_are_no_part_of_answers(ask, body: dict[str, Any]) -> None:
    (row,) = records(ask(body, "--json").stdout)
    assert row["answer"] == "Blue." and row["reasoning"] == "Red?" and row["finish"] == "stop"
    assert ask(body).stdout == b"Blue.\n"


@pytest.mark.parametrize(
    "deltas",
    [
        [{"content": "<thi"}, {"content": "nk>Red?</think>\n"}, {"content": "Blue."}],
        [{"reasoning": "Red?"}, {"content": "Blue."}],
        [{"reasoning_content": "Red?"}, {"content": "Blue."}],
    ],
)
def test_so_are_those_of_streams(ask, deltas: list[dict[str, Any]]) -> None:
    assert ask(streamed(*deltas), "--stream").stdout == b"Blue.\n"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (said(""), "the model said nothing"),
        (said(" \u200b\n"), "the model said nothing"),
        (said(None), "the model said nothing"),
        (said("", tool_calls=[{"function": {"name": "zoom"}}]), "calls a tool, zoom"),
        (said([{"type": "audio", "data": "x"}]), "the response contains no answer"),
        ({"message": {"content": "Blue."}, "done": True}, "check the model's name, tiny, and --base-url"),
        ({"detail": "Not Found"}, "--base-url"),
        (said("<think>Red?</think>"), "the model thought, but gave no answer"),
        (said(None, "length", reasoning="Red"), "cut off before the answer began: left out, raise --max-tokens"),
        (said("Blu", "SAFETY"), "content filter"),
        (said("Blu", "insufficient_system_resource"), "the answer broke off: insufficient_system_resource"),
        ({"choices": [{**said("Blu", "error")["choices"][0], "error": {"message": "upstream lost"}}]}, "upstream lost"),
        ({"error": {"message": "worker died", "code": 502}}, "answers 502, worker died"),
        ({"detail": "no workers"}, "no workers"),
    ],
)
def test_what_is_no_answer(ask, body: dict[str, Any], told: str) -> None:
    done = ask(body, code=2)
    assert told in done.stderr.decode() and done.stdout == b"" and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (streamed({"content": ""}), "the model said nothing"),
        (streamed({"content": "Blu"}, finish="content_filter"), "content filter"),
        (streamed({"refusal": "I would rather not"}), "the model refuses"),
        (streamed({"content": "<think>Red"}, finish="length"), "raise --max-tokens"),
        (streamed({"content": "Blu"}).replace("data: [DONE]", 'data: {"error": {"message": "upstream lost"}}'), "lost"),
        ({"error": "Unexpected endpoint or method."}, "--base-url"),
        (streamed({"content": "Red?"}, {"content": "</think>Blue."}), "leave --stream out"),
    ],
)
def test_what_is_no_answer_in_a_stream(ask, body: object, told: str) -> None:
    assert told in ask(body, "--stream", code=2).stderr.decode()


def test_what_failed_is_asked_again_and_what_was_cut_under_a_larger_limit(vlmkit, hosted: Hosted, tmp_path) -> None:
    broken, cut, good = reply(said("")), reply(said("A long", "length")), "good"
    rows = jsonl(*({"id": name, "question": text} for name, text in (("b", broken), ("c", cut), ("g", good))))
    line = ("ask", "--resume", "done.jsonl", "--option", "retries=0")
    done = vlmkit(*line, stdin=rows, code=3)
    found = records((tmp_path / "done.jsonl").read_bytes())
    assert [(row["id"], row["finish"], row.get("max_tokens")) for row in found] == [
        ("c", "length", 256),
        ("g", "stop", None),
    ]
    assert b"1 of 2 answers was cut off" in done.stderr
    before = hosted.asked.copy()
    vlmkit(*line, stdin=rows, code=3)
    assert hosted.asked - before == {broken: 1}, "under the same limit it would be cut again"
    vlmkit(*line, "--max-tokens", 999, stdin=rows, code=3)
    found = records((tmp_path / "done.jsonl").read_bytes())
    assert [(row["id"], row.get("max_tokens")) for row in found] == [("g", None), ("c", 999)], "the cut one went"
    assert hosted.asked[good] == 1


def test_records_tell_how_sure_the_model_is_and_what_it_took(ask, vlmkit, tmp_path: Path) -> None:
    body = said("Blue.")
    body["choices"][0]["logprobs"] = {"content": [{"token": "Blue", "logprob": -0.1}, {"token": ".", "logprob": -0.3}]}
    (row,) = records(ask(body | {"usage": {"completion_tokens": 2}}, "--stats").stdout)
    assert row["confidence"] == pytest.approx(0.8187, abs=1e-4) and row["tokens"] == 2 and row["ms"] > 0
    path = picture(tmp_path / "a.png")
    (row,) = records(vlmkit("caption", path, "--stats").stdout)
    assert row["finish"] == "stop" and row["tokens"] == 7 and row["ms"] > 0
    earlier = jsonl(
        {"image": str(path), "caption_model": "x@1", "reasoning": "old", "confidence": 0.1, "question": "a"}
    )
    (row,) = records(vlmkit("ask", stdin=earlier).stdout)
    assert "reasoning" not in row and "confidence" not in row, "they were about the caption"


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (400, [{"error": {"message": "API key not valid."}}], "OPENAI_API_KEY"),
        (403, {"error": {"message": "Key is disabled", "code": "invalid_api_key"}}, "OPENAI_API_KEY"),
        (400, {"error": {"message": "no-such is not a valid model ID"}}, "check the model's name"),
        (422, {"detail": [{"loc": ["body", "temperature"], "msg": "extra fields not permitted"}]}, "temperature=null"),
        (400, {"error": {"message": "Unknown parameter: 'seed'", "param": None}}, "seed=null"),
        (429, {"error": {"message": "Daily limit. Please retry in 3h20m."}}, "asks to wait 12000 s"),
        (200, {"error": "Unexpected endpoint or method. (POST /chat/completions)"}, "--base-url"),
    ],
)
def test_what_every_request_would_meet_ends_the_run(
    vlmkit, hosted: Hosted, status: int, body: object, told: str
) -> None:
    questions = jsonl(*({"id": str(n), "question": reply(body, status)} for n in range(30)))
    done = vlmkit("ask", "--option", "seed=1", stdin=questions, code=2)
    assert told in done.stderr.decode() and done.stderr.count(b"\n") == 1 and b"{" not in done.stderr
    assert sum(hosted.asked.values()) <= 16


@pytest.mark.parametrize(
    "text", ["this server is not multimodal: image input is not supported", "unknown variant image_url"]
)
def test_a_model_without_eyes(vlmkit, tmp_path: Path, text: str) -> None:
    for name in "abcde":
        picture(tmp_path / f"some/{name}.png")
    done = vlmkit("ask", "some", reply({"error": {"message": text}}, 500), code=2)
    assert text in done.stderr.decode() and b"takes pictures" in done.stderr and done.stderr.count(b"\n") == 1


def test_an_outage_in_words_nobody_knows(vlmkit, hosted: Hosted) -> None:
    """The same for all that are under way, and no answer at all: the rest is not tried."""
    questions = jsonl(*({"id": str(n), "question": reply({"error": f"gone fishing {n}"}, 500)} for n in range(40)))
    done = vlmkit("ask", stdin=questions, code=2)
    assert b"gone fishing" in done.stderr and done.stderr.count(b"\n") == 1
    assert sum(hosted.asked.values()) <= 32, "a particular reason is tried twice, not five times"


def test_what_concerns_one_record_fails_alone(vlmkit) -> None:
    flagged = {"error": {"message": "Your input was flagged", "metadata": {"reasons": ["violence"]}}}
    rows = [reply(flagged, 403), reply({"error": {"message": "context length exceeded, max_tokens"}}, 400), "good"]
    done = vlmkit("ask", stdin=jsonl(*({"id": str(n), "question": text} for n, text in enumerate(rows))), code=3)
    assert [row["id"] for row in records(done.stdout)] == ["2"]
    assert b"flagged: violence" in done.stderr and b"OPENAI_API_KEY" not in done.stderr


def test_settings_that_are_not_needed_are_left_out(vlmkit, hosted: Hosted) -> None:
    done = vlmkit("ask", "newer how old?", "--schema", "age int", "--max-tokens", 9)
    assert done.stdout == b'{"age":7}\n' and done.stderr == b""
    assert hosted.received[-1]["max_completion_tokens"] == 9 and "max_tokens" not in hosted.received[-1]


def test_a_wait_that_is_told_in_the_body(vlmkit, hosted: Hosted) -> None:
    start = time.monotonic()
    assert vlmkit("ask", "limited").stdout == b"heard: limited\n"
    assert time.monotonic() - start >= 0.6 and hosted.asked == {"limited": 3}


def test_requests_a_minute(vlmkit) -> None:
    start = time.monotonic()
    vlmkit("ask", "--rpm", 200, stdin=jsonl(*({"id": str(n), "question": f"good {n}"} for n in range(5))))
    assert time.monotonic() - start >= 4 * 0.3
    assert b"require a model of an endpoint" in vlmkit("ask", "-m", "mini", "--rpm", 5, "why?", code=2).stderr


@pytest.mark.parametrize(
    ("headers", "body", "reason", "seconds"),
    [
        ({"Retry-After": "7"}, None, "", 7),
        ({"retry-after-ms": "250"}, None, "", 0.25),
        ({}, {"error": {"retry_after": 3}}, "", 3),
        ({}, {"retry_after_ms": 1500}, "", 1.5),
        ({}, [{"error": {"details": [{"retryDelay": "42.5s"}]}}], "", 42.5),
        ({}, None, "Rate limit reached. Please try again in 1m2.5s.", 62.5),
        ({}, None, "try again in 320ms", 0.32),
        ({"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-remaining-requests": "0"}, None, "", 360),
        ({"x-ratelimit-reset-tokens": "9s", "x-ratelimit-remaining-tokens": "500"}, None, "", 0),
        ({}, None, "too many requests", 0),
    ],
)
def test_waits(headers: dict[str, str], body: object, reason: str, seconds: float) -> None:
    assert wait_of(headers, body, reason) == pytest.approx(seconds)


def test_waits_until_a_time_of_day() -> None:
    end = time.time() + 3600
    in_milliseconds = {"error": {"metadata": {"headers": {"X-RateLimit-Reset": str(int(1000 * end))}}}}
    assert wait_of({"Retry-After": email.utils.formatdate(end, usegmt=True)}, None, "") == pytest.approx(3600, abs=60)
    assert wait_of({}, in_milliseconds, "") == pytest.approx(3600, abs=60)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "no", "code": 4}}, "no"),
        ({"error": "no"}, "no"),
        ({"detail": [{"loc": ["body", "n"], "msg": "too many"}]}, "body.n: too many"),
        ({"error": {"message": "failed", "metadata": {"raw": '{"error": {"message": "no"}}'}}}, "failed: no"),
        ("plain words", "plain words"),
        ("<html>welcome</html>", ""),
        ([{"error": {"message": "no"}}], "no"),
    ],
)
def test_the_words_of_a_server(body: object, words: str) -> None:
    assert reason_of(body) == words


@pytest.mark.slow
def test_a_stream_that_breaks_off_is_one_line(installed) -> None:
    """In a process of its own: what the client leaves open is told at the end of one."""
    done = installed("ask", "unended stream", "--stream", "--option", "retries=0", code=2)
    assert done.stdout == b"" and done.stderr.count(b"\n") == 1 and b"overloaded" in done.stderr
