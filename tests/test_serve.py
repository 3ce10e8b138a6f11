"""serve: the service, asked by clients of OpenAI's interface and in the forms of others."""

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from chat_families import FAMILIES
from conftest import own_environment
from dual_encoders import clip
from helpers import jpeg, records, vector
from serving import Served, data_uri

SCHEMA = {"type": "object", "properties": {"color": {"type": "string"}}, "required": ["color"]}


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service of two models, none of them mini, that forgets a model after a second."""
    folder = tmp_path_factory.mktemp("tiny")
    name, make = next(iter(FAMILIES.items()))
    make(folder / name)
    clip(folder / "clip")
    names = [f"chat={folder / name}", folder / "clip"]
    models = [word for name in names for word in ("-m", name)]
    service = Served(folder, own_environment(folder), *models, "--idle", 1)
    yield service
    service.end()


def cup(photos: Path) -> str:
    return data_uri((photos / "coffee.png").read_bytes())


def shown(*parts: str) -> list[dict]:
    """A message with pictures and texts."""
    kinds = {
        True: lambda url: {"type": "image_url", "image_url": {"url": url}},
        False: lambda t: {"type": "text", "text": t},
    }
    return [{"role": "user", "content": [kinds[part.startswith("data:")](part) for part in parts]}]


def test_chat_answers_as_ask_does(client: openai.OpenAI, photos: Path, vlmkit) -> None:
    asked = vlmkit("ask", photos / "coffee.png", "what is on the table?").stdout.decode().strip()
    reply = client.chat.completions.create(model="mini", messages=shown(cup(photos), "what is on the table?"))
    assert reply.choices[0].message.content == asked and reply.choices[0].finish_reason == "stop"
    assert reply.model.startswith("mini@") and reply.usage.prompt_tokens > 49
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_chat_streams_the_same(client: openai.OpenAI, photos: Path) -> None:
    ask = {"model": "mini", "messages": shown(cup(photos), "what is on the table?")}
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-2].usage is None
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_mini_says_its_answer_word_by_word(client: openai.OpenAI, photos: Path) -> None:
    url = cup(photos)
    ask = {"model": "mini", "messages": shown(url, "describe this picture in a sentence"), "max_tokens": 24}
    whole = client.chat.completions.create(**ask).choices[0].message.content
    pieces = [c.choices[0].delta.content for c in client.chat.completions.create(**ask, stream=True)]
    pieces = [piece for piece in pieces if piece]
    assert "".join(pieces) == whole and len(pieces) >= len(whole.split())


@pytest.mark.slow
def test_llm_asks_about_a_picture(served: Served, photos: Path, tmp_path: Path) -> None:
    """A client of others, which knows no more of the service than its address."""
    model = {"model_id": "vlm", "model_name": "mini", "api_base": f"{served.url}/v1", "vision": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))  # which is YAML, too
    words = [Path(sys.executable).with_name("llm"), "-m", "vlm", "--key", "none", "what is on the table?"]
    own = os.environ | {"LLM_USER_PATH": str(tmp_path)}
    done = subprocess.run([*words, "-a", photos / "coffee.png"], env=own, capture_output=True, text=True)
    body = {"messages": shown(cup(photos), "what is on the table?")}
    answer = served.ask("/v1/chat/completions", **body)["choices"][0]["message"]["content"]
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{answer}\n", "")


@pytest.mark.slow
def test_a_stop_ends_an_answer_before_it(client: openai.OpenAI, tiny: Served) -> None:
    ask = {"model": "chat", "messages": [{"role": "user", "content": "say"}], "max_tokens": 24}
    long = openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none")
    text = long.chat.completions.create(**ask).choices[0].message.content
    stop = text[len(text) // 2 :][:2]
    before = text[: text.index(stop)]
    for more in ({"stream_options": {"include_usage": True}}, {}):
        chunks = list(long.chat.completions.create(**ask, **more, stop=[stop, "never"], stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == before
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    cut = long.chat.completions.create(**ask, stop=stop).choices[0]
    assert (cut.message.content, cut.finish_reason) == (before, "stop")


@pytest.mark.slow
def test_a_seed_gives_the_same_answer_whoever_else_asks(tiny: Served) -> None:
    def say(seed: int | None) -> str:
        body = {"model": "chat", "messages": [{"role": "user", "content": "say"}], "temperature": 1.5, "max_tokens": 12}
        return tiny.ask("/v1/chat/completions", **body, seed=seed)["choices"][0]["message"]["content"]

    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(say(7))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 4 and set(texts) == {say(7)}
    assert len({say(None) for _ in range(4)}) > 1


def test_an_answer_that_misses_its_schema_is_told(served: Served, photos: Path) -> None:
    body = {"messages": shown(cup(photos), "what color?")}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    loose = served.ask("/v1/chat/completions", **body, response_format=form)
    assert "the answer does not match the schema" in loose["warnings"]
    form["json_schema"]["strict"] = True
    error = served.error(422, "/v1/chat/completions", body | {"response_format": form})
    assert error["param"] == "response_format"
    for schema in ({"type": "nothing"}, {"$ref": "http://a.org/b"}, {"pattern": "(a*)*b"}, None):
        form["json_schema"]["schema"] = schema
        served.error(400, "/v1/chat/completions", body | {"response_format": form})


@pytest.mark.slow
def test_conversations_and_what_a_model_does_not_read(served: Served, tiny: Served, photos: Path) -> None:
    talk = [{"role": "system", "content": "be short"}, *shown(cup(photos), "what is this?")]
    talk += [{"role": "assistant", "content": "a cup"}, {"role": "user", "content": "what is in it?"}]
    told = served.ask("/v1/chat/completions", messages=talk, presence_penalty=1.0)
    assert any("earlier turns" in line for line in told["warnings"])
    assert "presence_penalty is not used here" in told["warnings"]
    assert "warnings" not in tiny.ask("/v1/chat/completions", model="chat", messages=talk, max_tokens=4)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}], "n": 2}, "n"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "tools"),
        ({"messages": [{"role": "user", "content": "a"}], "temperature": 9}, "temperature"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0"),
        ({"messages": shown("data:image/png;base64,AAAA", "a")}, "messages.0.content.0.image_url"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
    ],
)
def test_wrong_chats_are_refused(served: Served, body: dict, param: str | None) -> None:
    assert served.error(400, "/v1/chat/completions", body)["param"] == param


def test_what_a_model_refuses_is_400(served: Served, client: openai.OpenAI) -> None:
    for question, told in (("Was ist auf dem Tisch zu sehen?", "not in English"), ("a " * 600, "shorten the question")):
        body = {"messages": [{"role": "user", "content": question}]}
        error = served.error(400, "/v1/chat/completions", body)
        assert error["code"] == "cannot_answer" and error["param"] == "messages" and told in error["message"]
        with pytest.raises(openai.APIError, match=told):  # the status of a stream is sent before
            list(client.chat.completions.create(model="mini", **body, stream=True))


def test_unknown_models_and_paths_are_404(served: Served, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="use one of mini"):
        client.embeddings.create(model="gpt-9", input="a")
    assert served.error(404, "/v1/nothing", {})["type"] == "not_found_error"
    assert served.get("/v1/embeddings").json()["error"]["message"] == "Method Not Allowed"
    assert served.error(400, "/v1/embeddings", b"{nonsense")["code"] == "invalid_json"


def test_embeddings_are_those_of_embed(client: openai.OpenAI, vlmkit) -> None:
    texts = ["a red car", "two dogs"]
    expected = [vector(row) for row in records(vlmkit("embed", "--text", stdin="\n".join(texts).encode()).stdout)]
    for form in ("base64", "float"):
        reply = client.embeddings.create(model="mini", input=texts, encoding_format=form)
        found = [item.embedding for item in reply.data]
        found = [np.frombuffer(base64.b64decode(v), "<f4") if isinstance(v, str) else v for v in found]
        assert np.allclose(found, expected, atol=1e-3)
        assert [item.index for item in reply.data] == [0, 1] and reply.usage.prompt_tokens > 4
    by_default = client.embeddings.create(model="mini", input="a red car")  # base64 on the way
    assert np.allclose(by_default.data[0].embedding, expected[0], atol=1e-3)


def test_every_form_of_a_picture_gives_its_vector(served: Served, photos: Path, photo_rows: bytes) -> None:
    expected = next(vector(row) for row in records(photo_rows) if row["image"].endswith("coffee.png"))
    uri, path = cup(photos), str(photos / "coffee.png")
    part = {"type": "image_url", "image_url": {"url": uri}}
    forms = [
        {"input": [uri], "modality": "image"},
        {"input": uri},
        {"input": [{"content": [part]}]},
        {"messages": [{"role": "user", "content": [part]}]},
        {"input": [{"image": uri}]},
        {"input": [{"image": uri.partition(",")[2]}]},
        {"input": {"image": path}},
        {"input": [{"type": "image_base64", "image_base64": uri}]},
        {"input": path, "modality": "image"},
        {"input": [{"image": f"file://{path}"}]},
    ]
    for form in forms:
        (found,) = served.ask("/v1/embeddings", model="mini", **form)["data"]
        assert np.allclose(found["embedding"], expected, atol=1e-3), form
    cohere = served.ask(
        "/v2/embed", model="mini", images=[uri], input_type="image", embedding_types=["float", "base64"]
    )
    assert np.allclose(cohere["embeddings"]["float"][0], expected, atol=1e-3)
    assert cohere["response_type"] == "embeddings_by_type" and cohere["meta"]["billed_units"]["images"] == 1


def test_parts_of_one_input_add_up(served: Served, photos: Path) -> None:
    uri = cup(photos)
    parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "a cup"}]
    both, again, picture, text = (
        served.ask("/v1/embeddings", input=one)["data"][0]["embedding"]
        for one in ([{"content": parts}], [{"image": uri, "text": "a cup"}], [{"image": uri}], [{"text": "a cup"}])
    )
    halves = [{"type": "text", "text": half} for half in ("a ", "cup")]
    joined = served.ask("/v1/embeddings", input=[{"content": halves}, "a cup"])["data"]
    assert np.allclose(joined[0]["embedding"], joined[1]["embedding"], atol=1e-6)
    total = np.add(picture, text)
    assert np.allclose(both, total / np.linalg.norm(total), atol=1e-5) and np.allclose(both, again, atol=1e-6)


def test_what_cannot_be_embedded_is_refused(served: Served) -> None:
    assert served.error(400, "/v1/embeddings", {"input": [1, 2]})["code"] == "tokens_not_supported"
    assert served.error(400, "/v1/embeddings", {"input": [[1], [2]]})["code"] == "tokens_not_supported"
    assert (
        "dimensions, which cannot be cut"
        in served.error(400, "/v1/embeddings", {"input": "a", "dimensions": 64})["message"]
    )
    for body in ({}, {"input": []}, {"input": ["a", ""]}, {"input": [{}]}, {"input": ["a"] * 2049}):
        served.error(400, "/v1/embeddings", body)
    assert served.error(400, "/v1/embeddings", {"input": [{"text": "a"}, {"image": "x"}]})["param"] == "input.1.image"
    served.error(400, "/v2/embed", {"texts": ["a"], "images": ["b"]})
    assert served.error(400, "/v2/embed", {"texts": ["a"], "embedding_types": ["int8"]})["param"] == "embedding_types"


def test_what_the_model_does_not_read_is_told(served: Served) -> None:
    (unknown,) = served.ask("/v1/embeddings", input="кошка")["warnings"]
    assert "кошка" in unknown
    (cut,) = served.ask("/v1/embeddings", input="a cat " * 100)["warnings"]
    assert "were cut" in cut


def test_search_finds_what_search_finds(served: Served, photos: Path, vlmkit, photo_rows: bytes) -> None:
    vlmkit("index", stdin=photo_rows)
    expected = records(vlmkit("search", "a cup of coffee", "-k", 3).stdout)
    found = served.ask("/v1/search", query="a cup of coffee", k=3)["data"]
    assert [(r["id"], r["rank"]) for r in found] == [(r["id"], r["rank"]) for r in expected]
    assert np.allclose([r["score"] for r in found], [r["score"] for r in expected], atol=1e-5)
    assert served.ask("/v1/search", query="a cup of coffee", k=1, offset=1)["data"] == found[1:2]
    coffee = str(photos / "coffee.png")
    assert served.ask("/v1/search", image=cup(photos), k=1)["data"][0]["id"] == coffee
    assert served.ask("/v1/search", like=coffee, k=1)["data"][0]["id"] != coffee
    both = served.ask("/v1/search", query=["a cup", "0.5:a cat"], minus="coffee", image=[coffee], k=20)["data"]
    assert len(both) > 3


def test_search_keeps_to_its_conditions(served: Served) -> None:
    widths = [r["width"] for r in served.ask("/v1/search", query="a cat", where="width>500", k=50)["data"]]
    assert widths and min(widths) > 500
    (one,) = {r["width"] for r in served.ask("/v1/search", query="a cat", where={"width": 512}, k=50)["data"]}
    assert one == 512
    best = served.ask("/v1/search", query="a cat", min_score=0.2)["data"]
    assert all(r["score"] >= 0.2 for r in best)
    assert "not a condition" in served.error(400, "/v1/search", {"query": "a", "where": ["width"]})["message"]
    assert "no record has a field" in served.error(400, "/v1/search", {"query": "a", "where": ["wdth>1"]})["message"]
    served.error(400, "/v1/search", {"like": "nowhere"})
    served.error(400, "/v1/search", {"k": 3})


def test_classify_agrees_with_classify(served: Served, photos: Path, vlmkit) -> None:
    labels = ["cat", "coffee", "rocket"]
    (expected,) = records(vlmkit("classify", photos / "coffee.png", "--labels", ",".join(labels), "--json").stdout)
    reply = served.ask("/v1/classify", input=[cup(photos), {"text": "a cat"}], labels=labels, k=2)
    assert [entry["label"] for entry in reply["data"]] == ["coffee", "cat"]
    assert reply["data"][0]["labels"][0]["score"] == pytest.approx(expected["labels"][0]["score"], abs=1e-3)
    assert len(reply["data"][0]["labels"]) == 2
    assert served.error(400, "/v1/classify", {"input": cup(photos), "labels": [" "]})["param"] == "labels"
    served.error(400, "/v1/classify", {"input": cup(photos), "labels": ["a"], "template": "no place"})


@pytest.mark.slow
def test_models_are_loaded_when_asked_for_and_unloaded_when_idle(tiny: Served) -> None:
    def loaded() -> dict[str, bool]:
        return {one["id"]: one["loaded"] for one in tiny.get("/v1/models").json()["data"]}

    (folder,) = [name for name in loaded() if name.endswith("clip")]
    reply = tiny.ask("/v1/embeddings", model=folder, input=["a", {"image": data_uri(jpeg(), "jpeg")}])
    assert loaded()[folder] and reply["model"].startswith(folder)
    assert tiny.ask("/v1/embeddings", model=reply["model"], input="a")["model"] == reply["model"]
    assert tiny.error(400, "/v1/embeddings", {"model": "chat", "input": "a"})["param"] == "model"
    end = time.monotonic() + 30
    while any(loaded().values()):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert "vlmkit_model_loaded" in tiny.get("/metrics").text


@pytest.mark.slow
def test_a_changed_index_is_seen(photo_rows: bytes, vlmkit, environment, tmp_path: Path) -> None:
    first, *rest = photo_rows.splitlines(keepends=True)
    service = Served(tmp_path, environment)
    assert service.error(404, "/v1/search", {"query": "a cat"})["code"] == "no_index"
    vlmkit("index", stdin=first)
    assert len(service.ask("/v1/search", query="a cat", k=50)["data"]) == 1
    vlmkit("index", stdin=b"".join(rest))
    assert len(service.ask("/v1/search", query="a cat", k=50)["data"]) == len(rest) + 1
    vlmkit("index", "--remove", records(first)[0]["id"])
    assert len(service.ask("/v1/search", query="a cat", k=50)["data"]) == len(rest)
    service.end()


def test_metrics_and_the_document_of_the_interface(served: Served) -> None:
    served.ask("/v1/embeddings", input=["a"] * 8)
    text = served.get("/metrics").text
    assert 'vlmkit_requests_total{method="POST",path="/v1/embeddings",status="200"}' in text
    assert "vlmkit_batch_items_bucket" in text and "process_resident_memory_bytes" in text
    document = served.get("/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/embeddings", "/v1/search", "/v1/classify"} <= document["paths"].keys()
    for path, operations in document["paths"].items():
        assert all(served.client.request(method, path).status_code not in (404, 405) for method in operations)
    assert json.loads(json.dumps(document)) == document
