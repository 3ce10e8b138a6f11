"""caption and ask with a model of an endpoint, through the installed command, against a server in this process."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openai
import pytest
from conftest import SCRIPT
from helpers import jsonl, noise, picture, records
from hosted import Hosted, layout, pictures, question
from PIL import Image

from vlmkit.errors import VlmkitError
from vlmkit.models.load import load_chat_model
from vlmkit.models.types import Answer, EndpointOptions, Hardware, Request, RequestError, Sampling

KEY = "sk-secret-0123456789"
GPS = 0x8825


@pytest.fixture(autouse=True)
def surroundings(environment: dict[str, str], hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model and its place come from the environment; no key, and no proxies but those of a test."""
    for name in [*environment, *os.environ]:
        if name.lower().endswith("_proxy") or name.startswith("OPENAI_"):
            environment.pop(name, None)
            monkeypatch.delenv(name, raising=False)
    environment |= {"VLMKIT_CHAT_MODEL": "openai:tiny", "OPENAI_BASE_URL": hosted.url}


@pytest.fixture
def endpoint(hosted: Hosted) -> Callable[..., object]:
    """The backend itself, for what no command shows yet."""

    def load(**options: object):
        return load_chat_model("openai:tiny", Hardware(), EndpointOptions(hosted.url, options))

    return load


def asked(*questions: str) -> bytes:
    return jsonl(*({"id": text, "question": text} for text in questions))


def outcome(done: subprocess.CompletedProcess[bytes]) -> dict[str, str]:
    return {row["id"]: row["answer"] for row in records(done.stdout)}


def test_what_is_sent_is_what_the_package_would_send(vlmkit, hosted: Hosted, tmp_path: Path, environment) -> None:
    """A picture, a system prompt and all settings, beside the documented call."""
    environment["OPENAI_API_KEY"] = KEY
    path = picture(tmp_path / "a.png", "teal")
    settings = ["--system", "be brief", "--max-tokens", 9, "--temperature", 0.5, "--top-p", 0.25, "--seed", 3]
    more = ["--option", "detail=high", "--option", "reasoning_effort=low", "--option", 'stop=["."]']
    done = vlmkit("ask", path, "what is it?", *settings, *more)
    assert done.stdout == b"heard: what is it?\n" and done.stderr == b""
    with openai.OpenAI(base_url=hosted.url, api_key=KEY) as client:
        url = hosted.received[0]["messages"][1]["content"][0]["image_url"]["url"]
        client.chat.completions.create(
            model="tiny",
            messages=[
                {"role": "system", "content": "be brief"},
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
                        {"type": "text", "text": "what is it?"},
                    ],
                },
            ],
            max_tokens=9,
            temperature=0.5,
            top_p=0.25,
            seed=3,
            reasoning_effort="low",
            stop=["."],
        )
    assert hosted.received[0] == hosted.received[1]
    assert hosted.paths == ["/v1/chat/completions"] * 2
    assert [sent["authorization"] for sent in hosted.headers] == [f"Bearer {KEY}"] * 2


def test_what_is_not_said_is_not_sent(vlmkit, hosted: Hosted) -> None:
    line = ("ask", "what is love?", "--option", "max_tokens=null", "--option", "max_completion_tokens=5")
    done = vlmkit(*line, "--json", "-v")
    (row,) = records(done.stdout)
    said = [{"role": "user", "content": "what is love?"}]
    assert hosted.received == [{"model": "tiny", "messages": said, "max_completion_tokens": 5, "temperature": 0}]
    name, digits = row.pop("answer_model").split("@")
    assert name == "openai:tiny" and len(digits) == 12
    noted = done.stderr.decode().splitlines()
    assert noted[0] == f"vlmkit: model {name}@{digits}, device {hosted.url}/"
    assert "1 read, 1 written, 9 tokens sent, 7 tokens received" in noted[1]
    assert row == {
        "id": "what is love?",
        "question": "what is love?",
        "answer": "heard: what is love?",
        "finish": "stop",
    }


def test_pictures_arrive_whole_and_in_order(vlmkit, hosted: Hosted, tmp_path: Path) -> None:
    """Pixels of a small picture are exact; a large one is scaled, upright, and contains no place."""
    small = noise(1)[0][:40, :30]
    Image.fromarray(small).save(tmp_path / "small.png")
    turned = Image.Exif()
    turned[0x0112], turned[GPS] = 6, {1: "N", 2: (52.0, 31.0, 0.0)}
    large = Image.fromarray(noise(1, seed=1)[0]).resize((2400, 1000), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.jpg", exif=turned, comment=b"at home", quality=95)
    vlmkit("ask", "small.png", "large.jpg", "what changed?")
    first, second = pictures(hosted.received[0])
    assert first.format == "PNG" and np.array_equal(np.asarray(first), small)
    assert second.format == "JPEG" and second.size == (640, 1536)
    assert not second.getexif() and "comment" not in second.info
    upright = large.transpose(Image.Transpose.ROTATE_270).resize((640, 1536), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(second, float) - np.asarray(upright, float)).mean() < 2
    vlmkit("ask", "large.jpg", "small.png", "what changed?", "--option", "max_side=32")
    assert [one.size for one in pictures(hosted.received[1])] == [(13, 32), (24, 32)]


def test_pictures_stand_where_their_marks_are(vlmkit, hosted: Hosted, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", size=(30, 20))
    picture(tmp_path / "b.png", size=(20, 30))
    both = {"images": ["a.png", "b.png"]}
    said = [
        {"from": "system", "value": "be brief"},
        {"from": "human", "value": "what is <image> about?"},
        {"from": "gpt", "value": "tea"},
        {"from": "human", "value": "and <image>?"},
        {"from": "gpt", "value": "not sent"},
    ]
    rows = [
        both | {"id": "1", "question": "from <image> to <image>"},
        both | {"id": "2", "question": "<image>\n<image>\nwhat changed?"},
        both | {"id": "3", "question": "what changed?"},
        both | {"id": "4", "conversations": said},
        {"id": "5", "image": "a.png", "conversations": [*said[:3], {"from": "human", "value": "why?"}]},
    ]
    rows[4]["conversations"][1] = {"from": "human", "value": "what is it about?"}
    (tmp_path / "rows.jsonl").write_bytes(jsonl(*rows))
    done = vlmkit("ask", "rows.jsonl", "--batch-size", 1)
    assert [row["question"] for row in records(done.stdout)][3:] == ["and <image>?", "why?"]
    sent = [list(map(layout, body["messages"])) for body in hosted.received]
    assert sent[:3] == [["from + 30x20 + to + 20x30"], *[["30x20 + 20x30 + what changed?"]] * 2]
    assert sent[3] == ["be brief", "what is + 30x20 + about?", "tea", "and + 20x30 + ?"]
    assert sent[4] == ["be brief", "30x20 + what is it about?", "tea", "why?"]
    hosted.received.clear()
    (row,) = records(vlmkit("ask", "tell me", stdin=jsonl(rows[3])).stdout)
    assert row["question"] == "tell me"
    assert list(map(layout, hosted.received[0]["messages"]))[1:] == [
        "what is + 30x20 + about?",
        "tea",
        "20x30 + tell me",
    ]
    vlmkit("ask", "a.png", "b.png", "from <image> to <image>")
    assert layout(hosted.received[1]["messages"][0]) == sent[0][0]


def test_lines_of_a_page_are_kept(vlmkit, hosted: Hosted, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (row,) = records(vlmkit("ask", "a.png", "--ocr", "--json").stdout)
    assert row["answer"] == "a\n\n| b |"
    assert vlmkit("ask", "a.png", "--ocr").stdout == b"a\n\n| b |\n"
    assert vlmkit("ask", "a.png", "Read it").stdout == b"a | b |\n"


def test_boxes_are_of_the_original_whatever_was_sent(vlmkit, hosted: Hosted, tmp_path: Path) -> None:
    """A JPEG that is decoded at half its size, sideways; Qwen2.5-VL answers in pixels of what was sent."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (800, 400)).save(tmp_path / "a.jpg", exif=turned)
    how = ("--boxes", "--option", "max_side=100")

    def found(what: str, model: str) -> list[list[float]]:
        done = vlmkit("ask", "a.jpg", what, *how, "-m", f"openai:{model}")
        assert done.stderr == b""
        return [box["box"] for row in records(done.stdout) for box in row["boxes"]]

    assert found("250 500 750 1000", "qwen3-vl") == [[100, 400, 300, 800]]
    assert found("7 21 14 42", "qwen2.5-vl") == [[50, 200, 100, 400]]
    assert [one.size for one in pictures(hosted.received[-1])] == [(56, 84)]
    told = vlmkit("ask", "a.jpg", "0 0 500 500, 900 0 1900 500", *how, "-m", "openai:qwen3-vl").stderr.decode()
    assert "a.jpg: 1 of 2 boxes cut off at the edge" in told and told.count("\n") == 1
    assert b"neither thousandths" in vlmkit("ask", "a.jpg", "0 0 5000 500", *how, code=2).stderr


def test_captions(vlmkit, hosted: Hosted, tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    rows = records(vlmkit("caption", "a.png", "b.png").stdout)
    assert [row["caption"] for row in rows] == ["A cup of coffee on a table."] * 2
    assert rows[0]["caption_model"].startswith("openai:tiny@")
    guided = vlmkit("caption", "a.png", "--prompt", "This image shows", "--length", "long").stdout
    assert guided == b"This image shows A cup of coffee on a table. It is hot.\n"
    said = [question(body) for body in hosted.received]
    assert said[:2] == ["Describe this picture in one sentence."] * 2
    assert said[2] == 'Describe this picture in detail.\nBegin your reply with these words: "This image shows"'
    assert [body["max_tokens"] for body in hosted.received] == [64, 64, 256]
    assert all(len(pictures(body)) == 1 for body in hosted.received)


def test_a_reply_that_begins_as_reported(endpoint) -> None:
    (found,) = endpoint().answer([Request("Describe it.", start="a CUP of ")], Sampling(8))
    assert found == Answer("a CUP of coffee on a table. It is hot.", "stop", 7, prompt_tokens=9)


@pytest.mark.slow
def test_order_is_kept_whoever_is_first(vlmkit, hosted: Hosted) -> None:
    """Earlier questions are answered later, so many are under way at a time, and no more."""
    for size, count in ((5, 30), (1, 3)):
        hosted.most = 0
        questions = [f"meets {size} at {number}" + " late" * (3 - number % 4) for number in range(count)]
        found = outcome(vlmkit("ask", "--batch-size", size, stdin=asked(*questions)))
        assert list(found.items()) == [(text, f"heard: {text}") for text in questions] and hosted.most == size


def test_a_slow_answer_holds_nobody_up(endpoint, hosted: Hosted) -> None:
    """While the first request waits, the others go on."""
    model = endpoint()
    held = model.submit(Request("waits"), Sampling(8))
    found = model.answer([Request(f"question {n}") for n in range(3)], Sampling(8))
    assert found == [Answer(f"heard: question {n}", "stop", 7, prompt_tokens=9) for n in range(3)]
    assert not held.done()
    hosted.go.set()
    assert held.result(30) == Answer("heard: waits", "stop", 7, prompt_tokens=9)


def test_troubles_that_pass(vlmkit, hosted: Hosted) -> None:
    """Too many requests, with a wait that is honoured; a server error; cut connections; silence."""
    questions = ["busy", "hiccup", "cuts", "stalls", "good"]
    start = time.monotonic()
    done = vlmkit("ask", "--option", "timeout=2", stdin=asked(*questions))
    assert outcome(done) == {text: f"heard: {text}" for text in questions}
    assert time.monotonic() - start >= 1
    assert hosted.asked == {"busy": 2, "hiccup": 2, "cuts": 3, "stalls": 2, "good": 1}


@pytest.mark.slow
def test_troubles_that_stay_are_of_one_record(vlmkit, hosted: Hosted, tmp_path: Path) -> None:
    reasons = {
        "crowded": "the endpoint answers 429, too many requests",
        "broken": "the endpoint answers 500, Internal Server Error",
        "gone": "the endpoint fails: Server disconnected without sending a response. (2 tries)",
        "hangs": "the endpoint fails: silent for 2 s (2 tries)",
        "nonsense": 'the response contains no answer: {"choices": [{"mess',
        "page": "the response contains no answer: <html>welcome</html>",
        "empty": 'the response contains no answer: {"choices": []}',
        "number": "the response contains no answer: 7",
        "refuses": "the model refuses: I would rather not",
        "filtered": "blocked by the endpoint's content filter",
        "thinks": "cut off before the answer began",
        "excessive": "the endpoint answers 400, the context is too long",
        "forbidden": "the endpoint answers 403, not for you",
    }
    other = "rephrase the question or use another model"
    remedies = {"refuses": other, "filtered": other, "thinks": "raise --max-tokens, as the model may think first"}
    remedies["excessive"] = "change the question or the picture"
    remedies["forbidden"] = "set OPENAI_API_KEY to your key, and what it may use; or change the question or the picture"
    address = "check the model's name, tiny, and --base-url, which usually ends in /v1"
    remedies |= dict.fromkeys(["page", "nonsense", "number"], address)
    remedies["silent"] = "ask again, name another model, or raise --max-tokens"
    questions = ["good", *reasons, "silent", "long", "good again"]
    line = ("ask", "--errors", "errors.jsonl", "--option", "timeout=2", "--option", "retries=1", "--batch-size", 16)
    done = vlmkit(*line, stdin=asked(*questions), code=3)
    failed = {row["id"]: row["error"] for row in records((tmp_path / "errors.jsonl").read_bytes())}
    assert failed.pop("silent") == "the model said nothing"
    assert failed == reasons
    assert outcome(done) == {
        "good": "heard: good",
        "long": "a rocket stands on the",
        "good again": "heard: good again",
    }
    assert done.stderr.count(b"\n") == len(reasons) + 2
    assert b"1 of 3 answers was cut off by the limit of tokens: raise --max-tokens, which is 256" in done.stderr
    for name in failed:
        (reported,) = [line for line in done.stderr.decode().splitlines() if line.startswith(f"vlmkit: {name}: ")]
        assert reported.endswith(f": left out, {remedies.get(name, 'ask again later')}")
    assert hosted.asked["crowded"] == hosted.asked["gone"] == hosted.asked["hangs"] == 2
    assert hosted.asked["nonsense"] == hosted.asked["excessive"] == 1


def test_what_all_requests_would_meet_is_fatal(vlmkit, hosted: Hosted, tmp_path: Path, environment) -> None:
    """One line, without the key that the server repeats, no file, and few questions, none of them twice."""
    environment["OPENAI_API_KEY"] = KEY
    questions = asked(*(f"unauthorised {number}" for number in range(100)))
    done = vlmkit("ask", "-o", "out.jsonl", stdin=questions, code=2)
    reported = (
        f"vlmkit: {hosted.url}/ answers 401, Incorrect API key provided: Bearer ***: check the key, OPENAI_API_KEY\n"
    )
    assert done.stderr.decode() == reported
    assert not (tmp_path / "out.jsonl").exists()
    assert sum(hosted.asked.values()) <= 4 * 8 and max(hosted.asked.values()) == 1


@pytest.mark.parametrize(
    ("word", "reported"),
    [
        ("unauthorised", "set OPENAI_API_KEY to your key"),
        ("poor", "402, no credit: check the balance"),
        ("unknown", "The model tiny does not exist: check the model's name, tiny, and --base-url"),
        ("moved", "redirects to http://127.0.0.1:1/elsewhere: name that with --base-url if you trust it"),
        ("unsupported", "400, .*: change it, or leave it out with --option temperature=null"),
    ],
)
def test_what_is_fatal(endpoint, hosted: Hosted, word: str, reported: str) -> None:
    with pytest.raises(VlmkitError, match=reported):
        endpoint().answer([Request(word)], Sampling(8))
    assert hosted.asked == {word: 1}


def test_a_refusal_is_of_one_request_until_all_meet_it(vlmkit, hosted: Hosted) -> None:
    """One line where nothing is answered; beside an answer each record fails alone."""
    some = [f"forbidden {number}" for number in range(20)]
    done = vlmkit("ask", stdin=asked(*some), code=2)
    assert b"403, not for you: set OPENAI_API_KEY" in done.stderr and done.stderr.count(b"\n") == 1
    assert sum(hosted.asked.values()) <= 16
    done = vlmkit("ask", stdin=asked(*some[:7], "good", *some[7:]), code=3)
    assert list(outcome(done)) == ["good"] and done.stderr.count(b"\n") == 20


def test_no_server_at_all(vlmkit) -> None:
    """Told after the tries, before anything else is asked."""
    line = ("ask", "--base-url", "http://127.0.0.1:1/v1", "--option", "retries=1")
    done = vlmkit(*line, stdin=asked("one", "two"), code=2)
    assert b"http://127.0.0.1:1/v1/ cannot be reached, " in done.stderr and b"start the server" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.slow
def test_an_interrupt_does_not_wait_for_a_server(environment, tmp_path: Path, hosted: Hosted) -> None:
    """Two answers are out, the third does not come: whole lines, no traceback, at once."""
    (tmp_path / "asked.jsonl").write_bytes(asked("one", "two", "hangs", "four"))
    command = [SCRIPT, "ask", "asked.jsonl"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        lines = [process.stdout.readline() for _ in range(2)]
        deadline = time.monotonic() + 60
        while not hosted.asked["hangs"] and time.monotonic() < deadline:
            time.sleep(0.02)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert time.monotonic() - start < 15  # on a busy machine; the server is silent for 30
        lines.append(process.stdout.read())
        assert process.stderr.read() == b""
    assert [row["id"] for row in records(b"".join(lines))] == ["one", "two"]


def test_a_broken_run_goes_on_without_asking_twice(vlmkit, hosted: Hosted, tmp_path: Path) -> None:
    first = asked("one", "broken", "broken too", "three")
    line = ("ask", "--resume", "answers.jsonl", "--option", "retries=0")
    vlmkit(*line, stdin=first, code=3)
    vlmkit(*line, stdin=first, code=3)
    assert hosted.asked == {"one": 1, "broken": 2, "broken too": 2, "three": 1}
    assert [row["id"] for row in records((tmp_path / "answers.jsonl").read_bytes())] == ["one", "three"]


def test_identity_is_of_the_place_and_the_name(hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(name: str = "openai:tiny", url: str = hosted.url, **options: object) -> str:
        return load_chat_model(name, Hardware(), EndpointOptions(url, options)).identity

    known = identity()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert identity(seed=1) == identity(url=hosted.url + "/") == known
    assert identity(url=hosted.url.replace("://", "://me:word@")) == known
    assert len({known, identity("openai:large"), identity(url=hosted.url + "/beta")}) == 3
    monkeypatch.setenv("OPENAI_BASE_URL", hosted.url)
    assert load_chat_model("openai:tiny").identity == known
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert load_chat_model("openai:tiny").device == "https://api.openai.com/v1/"
    assert not hosted.received


def test_a_reply_streams(endpoint, hosted: Hosted) -> None:
    """The first piece is here before the second is sent."""
    said: list[str] = []

    def say(piece: str) -> None:
        said.append(piece)
        if "".join(said) == "one ":
            hosted.go.set()

    answer = endpoint().stream(Request("what is it?"), Sampling(8), say)
    assert answer.text == "".join(said) == "one two\nthree" and answer.finish == "stop"
    assert hosted.received[0]["stream"] is True


def test_a_stream_that_fails(endpoint, hosted: Hosted) -> None:
    hosted.go.set()
    model = endpoint(retries=1)
    said: list[str] = []

    def failure(prompt: str) -> str:
        said.clear()
        reply = model.stream(Request(prompt), Sampling(8), said.append)
        assert isinstance(reply, RequestError)
        return str(reply)

    assert "the response broke off" in failure("half") and "".join(said) == "one two"
    assert re.match(r"the response broke off \(.+\)", failure("garbled"))
    assert "500" in failure("broken")
    with pytest.raises(VlmkitError, match="OPENAI_API_KEY"):
        model.stream(Request("unauthorised"), Sampling(8), said.append)
    assert hosted.asked == {"half": 1, "garbled": 1, "broken": 2, "unauthorised": 1}


def test_a_schema_is_passed_on(endpoint, hosted: Hosted) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    endpoint().answer([Request("who?", schema=schema)], Sampling(8))
    assert hosted.received[0]["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": schema},
    }


def test_chance_depends_on_the_place_in_the_input(endpoint, hosted: Hosted) -> None:
    requests = [Request("same", number=number) for number in (0, 1)]
    endpoint().answer(requests, Sampling(8, temperature=1.0, seed=7))
    assert sorted(body["seed"] for body in hosted.received) == [7, 8]


def test_a_server_that_drips_comes_to_an_end(endpoint) -> None:
    (found,) = endpoint(timeout=0.5, retries=0).answer([Request("drips")], Sampling(8))
    assert str(found) == "the response did not finish in time"


def test_proxies_are_used_as_the_package_does(vlmkit, hosted: Hosted, environment: dict[str, str]) -> None:
    environment["HTTP_PROXY"] = hosted.url.removesuffix("/v1")
    assert vlmkit("ask", "hello", "--base-url", "http://far.example/v1").stdout == b"heard: hello\n"
    assert hosted.paths == ["http://far.example/v1/chat/completions"]


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (
            ["-m", "mini", "--option", "seed=1"],
            "--option and --rpm require a model of an endpoint, not mini",
        ),
        (["-m", "./some", "--base-url", "http://127.0.0.1/v1"], "require a model of an endpoint, not ./some"),
        (["-m", "openai:"], "openai: contains no model name"),
        (["--base-url", "127.0.0.1:8000/v1"], "the base URL '127.0.0.1:8000/v1/' is not valid"),
        (["--base-url", "http://127.0.0.1:port/v1"], "the endpoint cannot be used"),
        (["--device", "cpu"], "runs at an endpoint, not on a device here"),
        (["--option", "detail"], "--option detail has no value"),
        (["--option", "model=other"], "--option model cannot be set"),
        (["--option", "timeout=soon"], "--option timeout=soon is not valid: give a number such as 300"),
        (["--option", "retries=-1"], "--option retries=-1 is not valid: give a number such as 4"),
        (["--option", "max_side=true"], "--option max_side=True is not valid"),
    ],
)
def test_refusals(hosted: Hosted, monkeypatch, capsys, arguments: list[str], reported: str) -> None:
    from vlmkit.cli.app import main

    monkeypatch.setenv("VLMKIT_CHAT_MODEL", "openai:tiny")
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["ask", "hello", *arguments]) == 2
    line = capsys.readouterr().err
    assert reported in line and line.startswith("vlmkit: ") and line.count("\n") == 1
    assert not hosted.received


def test_a_key_that_is_none(endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nx")
    with pytest.raises(VlmkitError) as error:
        endpoint()
    assert str(error.value) == "OPENAI_API_KEY contains invalid characters: remove quotes and line breaks"


def test_it_starts_without_what_it_does_not_need(environment: dict[str, str], tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    code = (
        "import atexit, sys; from vlmkit.__main__ import run; sys.argv = ['vlmkit', 'ask', 'a.png', 'what?'];"
        "heavy = {'torch', 'transformers', 'onnxruntime', 'open_clip', 'faiss'};"
        "atexit.register(lambda: print('loaded:', *(heavy & set(sys.modules)))); run()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True)
    assert done.stdout == b"heard: what?\nloaded:\n", done.stderr.decode()


def test_without_the_package(environment: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import sys; from vlmkit.__main__ import run; sys.modules['openai'] = None;"
        "sys.argv = ['vlmkit', 'ask', 'what?']; run()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 2
    assert done.stderr == b"vlmkit: a model of an endpoint needs the package openai: pip install 'vlmkit[openai]'\n"


def test_captions_with_boxes(vlmkit, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", "teal", (200, 100))
    (row,) = records(vlmkit("caption", path, "--boxes").stdout)
    assert row["boxes"] == [{"label": "a cat", "box": [20.0, 20.0, 100.0, 60.0]}]
    assert row["caption"] == vlmkit("caption", path).stdout.decode().strip()
    (row,) = records(vlmkit("ask", path, "the dog", "--boxes").stdout)
    assert row["boxes"] == [] and row["answer"] == "A cat sits there.", "words in place of boxes are not lost"


def test_replies_in_parts_and_with_control_codes(vlmkit) -> None:
    assert vlmkit("ask", "parts please").stdout == b"in parts\n"
    assert vlmkit("ask", "codes please").stdout == b"]52;c;cm0=[31mred2J\n", "nothing that a terminal obeys"
    assert vlmkit("ask", "codes please", "--stream").stdout == b"]52;c;cm0=[31mred2J\n"


@pytest.mark.slow
def test_an_answer_that_misses_the_schema_is_reported(vlmkit) -> None:
    done = vlmkit("ask", "what is it?", "--schema", "name, age int")
    assert done.stdout.startswith(b"heard: ") and b"does not match the schema" in done.stderr


def test_a_reply_of_nothing_is_no_caption(vlmkit, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    for how in ([], ["--sidecar"]):
        done = vlmkit("caption", path, *how, "-m", "openai:mute", code=2)
        assert b"the model said nothing" in done.stderr and done.stdout == b""
    assert not (tmp_path / "a.txt").exists()
