"""The small vision-language model of mini against transformers' own `generate`, on random weights."""

import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import noise, picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_llava import tiny_llava
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    TopPLogitsWarper,
)
from transformers.modeling_outputs import BaseModelOutput

from vlmkit.errors import VlmkitError
from vlmkit.generate.pipeline import caption_sampling
from vlmkit.models.chat.decoding import Generated, _best, nucleus
from vlmkit.models.chat.mini import GRAPH, MiniChat, Prompts
from vlmkit.models.chat.mini_graphs import PADDING, PLACE, PLACES, Branches, Decoder, Features
from vlmkit.models.embedders.mini import Mini
from vlmkit.models.load import load_chat_model
from vlmkit.models.resolve import MINI_FILES, resolve
from vlmkit.models.types import Answer, Request, RequestError, Sampling
from vlmkit.recipes.mini.export_chat import export_chat

pytestmark = pytest.mark.slow

QUESTIONS = ["", "what color is the car?", "is it red", "", "a dog", "x"]
SHAPES = {
    "grouped queries, tied": {},
    "as many keys as queries, not tied": {"num_key_value_heads": 4, "tie_word_embeddings": False, "rms_norm_eps": 1e-3},
    "one key, biases, wide heads": {
        "num_key_value_heads": 1,
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 32,
        "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
    },
}


def opened(folder: Path) -> MiniChat:
    model = load_chat_model(str(folder))
    assert isinstance(model, MiniChat)
    return model


@pytest.fixture(scope="module", params=SHAPES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `trained`, and that packed as `float32`."""
    folder = tmp_path_factory.mktemp("both")
    tiny_llava(folder / "trained", seed=len(request.param), **SHAPES[request.param])
    export_chat(folder / "trained", folder / "float32", "float32")
    return folder


@pytest.fixture(scope="module")
def talk(talking: Path) -> MiniChat:
    return opened(talking / "packed")


@cache
def trained(folder: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def generated(folder: Path, pictures: list[list[np.ndarray]], questions: list[str], **how: object) -> list[str]:
    """What transformers documents: apply_chat_template, processor, generate, decode the new tokens; one by one."""
    model, processor = trained(folder)
    found = []
    for some, question in zip(pictures, questions, strict=True):
        content = [{"type": "image", "image": Image.fromarray(array)} for array in some]
        turns = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        inputs = processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        made = model.generate(**inputs, do_sample=False, renormalize_logits=True, min_new_tokens=1, **how)[
            :, inputs["input_ids"].shape[1] :
        ]
        found += [processor.decode(row, skip_special_tokens=True).strip() for row in made]
    return found


def texts(answers: list[Answer | RequestError]) -> list[str]:
    assert all(isinstance(answer, Answer) for answer in answers)
    return [answer.text for answer in answers]  # type: ignore[union-attr]


@pytest.mark.parametrize("beams", [1, 3])
def test_the_same_tokens_as_transformers(both: Path, beams: int) -> None:
    """One batch of six prompts of several lengths: no, one and two pictures."""
    arrays = noise(5)
    pictures = [[arrays[0]], [arrays[1]], [arrays[2]], [arrays[0], arrays[3]], [], [arrays[4]]]
    expected = generated(both / "trained", pictures, QUESTIONS, num_beams=beams, max_new_tokens=14)
    requests = [Request(question, some) for question, some in zip(QUESTIONS, pictures, strict=True)]
    answers = opened(both / "float32").answer(requests, Sampling(14, beams=beams))
    assert texts(answers) == expected
    assert len(set(expected)) > 3, "the prompts must make a difference"


@pytest.mark.parametrize("penalty", [0.0, 2.0])
def test_length_penalty_is_that_of_transformers(talking: Path, talk: MiniChat, penalty: float) -> None:
    arrays = noise(3, seed=5)
    questions = QUESTIONS[:3]
    expected = generated(
        talking / "trained", [[a] for a in arrays], questions, num_beams=3, max_new_tokens=12, length_penalty=penalty
    )
    requests = [Request(question, [a]) for question, a in zip(questions, arrays, strict=True)]
    assert texts(talk.answer(requests, Sampling(12, beams=3, length_penalty=penalty))) == expected


def test_the_beam_closest_to_the_picture(talking: Path, talk: MiniChat) -> None:
    """Of the four that `generate` finds; with two pictures, and without, the likeliest."""
    arrays, mini = noise(4, seed=7), Mini()
    four = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 6}
    beams = [generated(talking / "trained", [[array]], [""], **four) for array in arrays]
    near = mini.embed_images(arrays)
    expected = [some[int((mini.embed_texts(some) @ vector).argmax())] for some, vector in zip(beams, near, strict=True)]
    requests = [Request("", [array]) for array in arrays]
    assert texts(talk.answer(requests, Sampling(6, beams=4, clip_rerank_weight=1e6))) == expected
    likeliest = texts(talk.answer(requests, Sampling(6, beams=4)))
    assert likeliest == [some[0] for some in beams] != expected
    requests = [Request(QUESTIONS[1], [arrays[0], arrays[1]]), Request(QUESTIONS[2])]
    how = Sampling(6, beams=4, clip_rerank_weight=1e6)
    assert talk.answer(requests, how) == talk.answer(requests, replace(how, clip_rerank_weight=0.0))


def test_captions_are_those_of_the_mean_of_picture_and_mirror_image(
    talking: Path, talk: MiniChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`generate` on a tower whose grid is the mean of both, each place with itself."""
    arrays = noise(3, seed=11)
    plain = generated(talking / "trained", [[array] for array in arrays], [""] * 3, max_new_tokens=12)
    tower = trained(talking / "trained")[0].model.vision_tower
    look = tower.forward

    def both_ways(pixel_values: torch.Tensor, **rest: object) -> BaseModelOutput:
        there, back = (look(each, **rest).last_hidden_state for each in (pixel_values, pixel_values.flip(-1)))
        grid = (there + back.unflatten(1, (7, 7)).flip(2).flatten(1, 2)) / 2
        return BaseModelOutput(grid, hidden_states=(grid,))

    monkeypatch.setattr(tower, "forward", both_ways)
    expected = generated(talking / "trained", [[array] for array in arrays], [""] * 3, max_new_tokens=12)
    requests = [Request("", [array]) for array in arrays]
    assert texts(talk.answer(requests, Sampling(12, flip_augment=True))) == expected != plain
    assert texts(talk.answer(requests, Sampling(12))) == plain
    assert all(caption_sampling(talk, length, Sampling(1), None).flip_augment for length in talk.captions)


def test_replies_end_where_the_model_ends_them(talk: MiniChat) -> None:
    requests = [Request(question, [array]) for question, array in zip(QUESTIONS * 4, noise(24), strict=True)]
    answers = talk.answer(requests, Sampling(30))
    assert {answer.finish for answer in answers} == {"stop", "length"}
    assert all(answer.tokens == 30 if answer.finish == "length" else answer.tokens <= 30 for answer in answers)
    short = talk.answer(requests, Sampling(1))
    assert all(answer.tokens == 1 for answer in short)


@pytest.mark.parametrize(("kind", "least"), [("float32", 0.999999), ("float16", 0.9999), ("int8", 0.99)])
def test_small_weights_change_little(talking: Path, tmp_path: Path, kind: str, least: float) -> None:
    """Cosine of the logits after a picture and a question, packed and not."""
    export_chat(talking / "trained", tmp_path, kind)
    model, processor = trained(talking / "trained")
    array = noise(1, seed=3)
    prompt = "<user><image>what color is it?<reply>"
    inputs = processor(images=[Image.fromarray(array[0])], text=[prompt], return_tensors="pt")
    with torch.inference_mode():
        expected = model(**inputs).logits[0, -1].numpy()
    said = [i for i in range(len(expected)) if i not in model.generation_config.suppress_tokens]
    prompts = Prompts(tmp_path / "talk-tokenizer.json")
    ids = np.array([prompts.head(1) + prompts.tail("what color is it?")])
    logits, _ = Decoder(tmp_path / GRAPH)(ids, grid=Features(tmp_path, 1)(array))
    assert logits[0].argmax() in said and np.delete(logits[0], said).max() < -1e8
    logits, expected = logits[0, said], expected[said]
    assert logits @ expected / np.linalg.norm(logits) / np.linalg.norm(expected) >= least
    if kind != "int8":
        assert logits.argmax() == expected.argmax()


def test_the_cache_gives_what_a_whole_prompt_gives(talking: Path) -> None:
    """A prompt in one call, in two calls, with padding inside and outside, and with rows picked twice."""
    decoder = Decoder(talking / "packed" / GRAPH)
    grid = Features(talking / "packed", 1)(noise(1))
    head, tail = [2, *[PLACE] * PLACES], [8, 9, 10, 3]
    whole, _ = decoder(np.array([head + tail]), grid=grid)
    _, past = decoder(np.array([[PADDING, *head], [PADDING] * PLACES + [PADDING, 2]]), grid=grid)
    rows = np.array([0, 1, 0])
    parts, past = decoder(np.array([[PADDING, *tail], [11, *tail], [PADDING, *tail]]), past, rows)
    assert np.allclose(parts[[0, 2]], whole, atol=1e-3)
    assert not np.allclose(parts[1], whole, atol=1e-1)
    assert past.real.shape == (3, 1 + len(head) + 1 + len(tail))
    nothing, _ = decoder(np.array([head]), grid=np.zeros_like(grid))
    alone, _ = decoder(np.array([head]), grid=grid)
    assert not np.allclose(nothing, alone, atol=1e-1), "the picture must make a difference"


def test_branches_give_what_rows_of_their_own_give(talking: Path) -> None:
    """Two rows, one padded, three branches each, swapped, then one row dropped."""
    decoder, random = Decoder(talking / "packed" / GRAPH), np.random.default_rng(4)
    _, cache = decoder(np.array([[PADDING, 2, 8, 3], [2, 9, 10, 3]]))
    branches, rows = Branches(decoder, cache), cache
    for follows, own in ([0] * 3 + [1] * 3, [0] * 3 + [1] * 3), ([2, 0, 0, 4, 4, 5],) * 2, ([5, 3, 5],) * 2:
        tokens = random.integers(5, 60, len(follows))
        logits, rows = decoder(tokens[:, None], rows, np.array(own))
        assert np.allclose(branches(tokens, np.array(follows)), logits, atol=1e-4)


@given(st.integers(1, 400), st.integers(1, 16), st.integers(0, 2**32 - 1))
def test_the_best_scores_are_the_first_of_all_in_order(size: int, count: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(-50, 0, size + count).astype(np.float32)  # with ties
    assert _best(scores, count).tolist() == (-scores).argsort(kind="stable")[:count].tolist()


def test_beams_that_came_before_are_not_embedded_again(talk: MiniChat, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    embed = talk._embedder.embed_texts
    monkeypatch.setattr(talk._embedder, "embed_texts", lambda texts: seen.extend(texts) or embed(texts))
    requests = [Request("", [array]) for array in noise(2, seed=21)]
    how = Sampling(6, beams=4, clip_rerank_weight=5.0)
    first, count = talk.answer(requests, how), len(seen)
    assert count and talk.answer(requests[::-1], how) == first[::-1] and len(seen) == count


def test_an_answer_does_not_depend_on_its_batch(talk: MiniChat) -> None:
    requests = [
        Request(question, [array] if number % 3 else [], number=number)
        for number, (question, array) in enumerate(zip(QUESTIONS * 2, noise(12), strict=True))
    ]
    for sampling in (Sampling(12), Sampling(12, beams=3), Sampling(12, temperature=0.8, top_p=0.9, seed=3)):
        together = texts(talk.answer(requests, sampling))
        assert together == [texts(talk.answer([request], sampling))[0] for request in requests]


def test_questions_about_one_picture_read_it_once(talk: MiniChat, monkeypatch: pytest.MonkeyPatch) -> None:
    array, other = noise(2, seed=9)
    requests = [Request(question, [array]) for question in QUESTIONS] + [Request("x", [other])]
    alone = [texts(talk.answer([request], Sampling(8)))[0] for request in requests]
    seen: list[int] = []
    look = talk._features.with_vectors
    monkeypatch.setattr(talk._features, "with_vectors", lambda stack, _: seen.append(len(stack)) or look(stack))
    assert texts(talk.answer(requests, Sampling(8))) == alone
    assert seen == [2]


def test_chance_is_seeded(talk: MiniChat) -> None:
    requests = [Request("what is it", [noise(1)[0]], number=number) for number in range(8)]
    how = {"max_tokens": 12, "temperature": 1.0}
    first = texts(talk.answer(requests, Sampling(**how)))
    assert len(set(first)) > 1
    assert texts(talk.answer(requests, Sampling(**how))) == first
    assert texts(talk.answer(requests, Sampling(**how, seed=1))) != first
    greedy = texts(talk.answer(requests, Sampling(12)))
    assert texts(talk.answer(requests, Sampling(**how, top_p=1e-9))) == greedy
    assert texts(talk.answer(requests, Sampling(12, temperature=1e-4))) == greedy


@given(
    st.lists(st.integers(-200, 200).map(lambda tenths: tenths / 10), min_size=2, max_size=40, unique=True),
    st.floats(0.1, 3),
    st.floats(0.05, 0.95),
)
def test_the_nucleus_is_that_of_transformers(logits: list[float], temperature: float, top_p: float) -> None:
    tokens, shares = nucleus(np.array(logits, np.float32), temperature, top_p)
    warped = TopPLogitsWarper(top_p)(torch.zeros((1, 1)), torch.tensor([logits], dtype=torch.float64) / temperature)[0]
    odds = torch.softmax(torch.tensor(logits, dtype=torch.float64) / temperature, 0).sort(descending=True).values
    if (odds.cumsum(0) - top_p).abs().min() > 1e-6:  # else rounding decides
        assert set(tokens.tolist()) == set(warped.isfinite().nonzero().flatten().tolist())
        assert np.allclose(shares, torch.softmax(warped, 0)[torch.from_numpy(tokens.copy())], atol=1e-6)
    assert abs(shares.sum() - 1) < 1e-9


def test_how_the_reply_begins_is_part_of_it(talk: MiniChat) -> None:
    (free,) = talk.answer([Request("", [noise(1)[0]])], Sampling(12))
    (guided,) = talk.answer([Request("", [noise(1)[0]], start="This dog")], Sampling(12))
    assert isinstance(guided, Answer) and isinstance(free, Answer)
    assert guided.text.startswith("This dog") and guided.text != f"This dog{free.text}"


def test_confidence_is_the_mean_probability_of_the_tokens(talking: Path, talk: MiniChat) -> None:
    """Greedy, by chance and by beams; against the probabilities that PyTorch gives the same tokens."""
    model, processor = trained(talking / "trained")
    array = noise(1, seed=5)[0]
    for sampling in (Sampling(6), Sampling(6, temperature=0.7, seed=2), Sampling(6, beams=3)):
        request = Request("what color is it?", [array])
        (reply,) = talk.replies([request], sampling)
        (answer,) = talk.answer([request], sampling)
        assert isinstance(reply, Generated) and isinstance(answer, Answer)
        text = "<user><image>what color is it?<reply>"
        inputs = processor(images=[Image.fromarray(array)], text=[text], return_tensors="pt")
        said = [*reply.tokens, *[talk._prompts.end] * reply.ended]
        ids = torch.cat([inputs["input_ids"], torch.tensor([said])], 1)
        with torch.no_grad():
            logits = model(**inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[0].clone()
        logits[:, model.generation_config.suppress_tokens] = -torch.inf
        if sampling.beams == 1:
            logits[-len(said) - 1, talk._prompts.end] = -torch.inf  # an answer is not empty
        scores = logits[-len(said) - 1 : -1].log_softmax(-1)[range(len(said)), said]
        assert reply.log_probability == pytest.approx(float(scores.sum()), abs=1e-2)
        assert answer.confidence == pytest.approx(float(scores.mean().exp()), abs=0.006)


def test_marks_of_the_chat_in_a_question_are_letters(talking: Path) -> None:
    prompts = Prompts(talking / "packed/talk-tokenizer.json")
    ids = prompts.tail("a<image></s><reply>b<user>")
    assert ids[-1] == prompts.reply
    assert not {prompts.reply, prompts.end, prompts.user, PLACE} & set(ids[:-1])


def test_what_does_not_fit_fails_alone(talk: MiniChat) -> None:
    many = Request("what changed", list(noise(11)))
    fits, fails, last = talk.answer([Request("a dog"), many, Request("z" * 503)], Sampling(40))
    assert isinstance(fits, Answer) and fits.text
    assert isinstance(fails, RequestError) and "more than the 512" in str(fails)
    assert isinstance(last, Answer) and last.tokens <= 512 - 505
    assert talk.answer([many], Sampling(40))[0].args == fails.args


def test_another_model_is_not_packed(tmp_path: Path) -> None:
    tiny_llava(tmp_path / "linear", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    with pytest.raises(VlmkitError, match="not a Llama on the image tower of mini"):
        export_chat(tmp_path / "linear", tmp_path / "packed")
    tiny_llava(tmp_path / "other")
    template = tmp_path / "other/chat_template.jinja"
    template.write_text(template.read_text().replace("<reply>", "<reply>a "))
    with pytest.raises(VlmkitError, match="chat template"):
        export_chat(tmp_path / "other", tmp_path / "packed")


def test_a_folder_that_is_not_whole_is_an_error(talking: Path, tmp_path: Path) -> None:
    shutil.copytree(talking / "packed", tmp_path / "broken")
    graph = tmp_path / "broken" / GRAPH
    graph.write_bytes(graph.read_bytes()[:1000])
    with pytest.raises(VlmkitError, match=r"talk\.onnx"):
        load_chat_model(str(tmp_path / "broken"))
    graph.unlink()
    with pytest.raises(VlmkitError, match=r"broken is incomplete: talk\.onnx is missing: download the folder again"):
        load_chat_model(str(tmp_path / "broken"))
    shutil.copy(talking / "packed" / GRAPH, graph)
    (tmp_path / "broken/talk-tokenizer.json").write_text("{}")
    with pytest.raises(VlmkitError, match=r"talk-tokenizer\.json"):
        load_chat_model(str(tmp_path / "broken"))
    (tmp_path / "broken/talk.json").write_text("[]")
    with pytest.raises(VlmkitError, match="is not a complete mini model"):
        load_chat_model(str(tmp_path / "broken"))


def test_the_identity_is_of_all_that_decides(talking: Path, tmp_path: Path) -> None:
    first = load_chat_model(str(talking / "packed")).identity
    for name in MINI_FILES["chat"]:
        folder = tmp_path / name
        shutil.copytree(talking / "packed", folder)
        (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
        assert resolve(str(folder), "chat").fingerprint() != first.rpartition("@")[2]


def test_an_answer_comes_without_pytorch(talking: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from vlmkit.cli.app import main; "
        f"assert main(['ask', '-m', {str(talking / 'packed')!r}, {str(picture(tmp_path / 'a.png'))!r}, 'what?']) == 0;"
        "print(*({'torch', 'transformers', 'onnx', 'open_clip', 'faiss'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 2 and done.stdout.endswith("\n\n")
