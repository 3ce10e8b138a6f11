"""A trained folder after training: what the language model could do before, and `vlmkit train check`."""

from pathlib import Path

import pytest
from helpers import records
from transformers import AutoModelForCausalLM, AutoTokenizer
from vlm_data import line, write_data, write_towers
from warm import Start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Path:
    folder = write_towers(write_data(tmp_path_factory.mktemp("data")))
    start(folder, *line(folder, "align", "captions", "aligned")).done()
    return folder


@pytest.mark.parametrize("text", ["a cat is", "a", "what? "])
def test_a_text_is_continued_as_the_language_model_does(data: Path, start: Start, tmp_path: Path, text: str) -> None:
    """After align, which leaves it alone: with the same tokens, bit for bit."""
    words = "ask", text, "--raw", "-m", str(data / "aligned"), "--max-tokens", "12", "--json"
    (record,) = records(start(tmp_path, *words).done().stdout)
    bare, tokenizer = (
        AutoModelForCausalLM.from_pretrained(data / "llama"),
        AutoTokenizer.from_pretrained(data / "llama"),
    )
    inputs = tokenizer(text, return_tensors="pt")
    (row,) = bare.generate(**inputs, max_new_tokens=12, do_sample=False).tolist()
    before, after = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (inputs.input_ids[0], row))
    assert record["answer"] == after.removeprefix(before) and record["answer"]


def test_a_text_is_continued_without_pictures(data: Path, start: Start, tmp_path: Path) -> None:
    picture = next((data / "pictures").iterdir())
    done = start(tmp_path, "ask", str(picture), "a cat is", "--raw", "-m", str(data / "aligned")).done(2)
    assert b"a text is continued without pictures" in done.stderr
    done = start(tmp_path, "ask", "a cat is", "--raw").done(2)
    assert b"continues no text as it stands" in done.stderr
