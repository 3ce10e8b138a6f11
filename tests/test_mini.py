"""The model `mini` that ships."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.mini_quality import flickr_recall, query_hits
from helpers import noise
from PIL import Image

from vlmkit.errors import VlmkitError
from vlmkit.models.embedders.mini import CONTEXT, SIZE, Mini
from vlmkit.models.resolve import MINI_FILES, MINI_FOLDER

pytestmark = pytest.mark.slow

FILES = MINI_FILES["embed"]


@pytest.fixture(scope="module")
def mini() -> Mini:
    return Mini()


def test_it_takes_at_most_22_megabytes(mini: Mini) -> None:
    assert sum((mini.folder / name).stat().st_size for name in FILES) <= 21_900_000  # and a kilobyte of configuration


def test_vectors_are_unit_vectors_of_the_stated_length(mini: Mini) -> None:
    for vectors in (mini.embed_images(noise(3)), mini.embed_texts(["a dog", "two children by the sea"])):
        assert vectors.dtype == np.float32
        assert vectors.shape[1] == mini.dim
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    nothing = np.zeros((0, SIZE, SIZE, 3), np.uint8)
    assert mini.embed_images(nothing).shape == mini.embed_texts([]).shape == (0, mini.dim)


def test_a_picture_does_not_depend_on_its_batch(mini: Mini) -> None:
    pictures = noise(19)
    together = mini.embed_images(pictures)
    alone = np.concatenate([mini.embed_images(picture[None]) for picture in pictures])
    assert np.allclose(together, alone, atol=1e-5)
    assert (together.astype(np.float16) == alone.astype(np.float16)).all()


def test_a_text_does_not_depend_on_its_batch(mini: Mini) -> None:
    texts = [
        "a dog",
        "",
        "a lighthouse by the sea at night",
        "é ü 東京",
        "word " * 300,
        "A DOG",
        *["sea " * i for i in range(40)],
    ]
    together = mini.embed_texts(texts)
    alone = np.concatenate([mini.embed_texts([text]) for text in texts])
    assert np.allclose(together, alone, atol=1e-5)
    assert (together.astype(np.float16) == alone.astype(np.float16)).all()
    assert (together[0] == together[5]).all(), "capitals make no difference"


def test_numpy_computes_what_onnx_runtime_does(mini: Mini) -> None:
    quick = Mini()
    quick.starts_quickly = True
    for texts in (["a red square"], [""], ["word " * 300, "Zürich 東京 & a dog"], ["a dog", "two children by the sea"]):
        assert np.abs(quick.embed_texts(texts) - mini.embed_texts(texts)).max() < 1e-6
    assert "_text" not in vars(quick)


def test_long_texts_are_cut(mini: Mini) -> None:
    start = " ".join(["sea"] * (CONTEXT - 2))
    first, other = mini.embed_texts([start, start + " and a dog"])
    assert (first == other).all()


def test_every_english_word_is_spelled(mini: Mini) -> None:
    for text in ("jellyfish", "xylophonists", "Zürich", "rock'n'roll", "42nd", "antidisestablishmentarianism"):
        assert "[UNK]" not in mini._tokenizer.encode(text).tokens, text


def test_preprocess_takes_the_middle(mini: Mini) -> None:
    wide = Image.new("RGB", (900, 300), "red")
    wide.paste("blue", (300, 0, 600, 300))
    array = mini.preprocess(wide)
    assert array.shape == (SIZE, SIZE, 3)
    assert array.dtype == np.uint8
    assert (array[:, 4:-4] == (0, 0, 255)).all()
    exact = noise(1)[0]
    assert (mini.preprocess(Image.fromarray(exact)) == exact).all(), "a picture of the right size is left alone"
    assert mini.preprocess(Image.new("RGB", (1, 5000))).shape == (SIZE, SIZE, 3)


def test_a_text_query_opens_only_what_it_needs() -> None:
    code = (
        "import sys; from vlmkit.models.embedders.mini import Mini; m = Mini(); m.embed_texts(['a dog']);"
        "assert '_image' not in vars(m);"
        "print(*({'torch', 'transformers', 'open_clip', 'timm', 'onnx', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_damaged_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VlmkitError, match="is not a complete mini model"):
        Mini(str(tmp_path))
    for name in FILES:
        (tmp_path / name).write_bytes((MINI_FOLDER / name).read_bytes()[:1000])
    (tmp_path / "mini.json").write_bytes((MINI_FOLDER / "mini.json").read_bytes())
    (tmp_path / "tokenizer.json").write_bytes((MINI_FOLDER / "tokenizer.json").read_bytes())
    graph = (MINI_FOLDER / "text.onnx").read_bytes()
    broken = Mini(str(tmp_path))
    for broken.starts_quickly in (True, False):
        for data in (b"", b"\xff" * 100, graph[:1000], graph[:-1000], graph.replace(b"Softmax", b"Sofamax")):
            (tmp_path / "text.onnx").write_bytes(data)
            with pytest.raises(VlmkitError, match=r"text\.onnx"):
                broken.embed_texts(["a dog"])


def test_real_photographs(mini: Mini, shared: Path) -> None:
    """Guards against getting worse. Recall keeps a margin above the targets on unseen data (0.60 and 0.64).

    The queries were written before they were tried, and stay as they are: 38 of the 48 hit. The others ask for what
    neither ImageNet's classes nor the captions teach, such as a satellite or the surface of a planet.
    """
    found = flickr_recall(mini, shared / "data/flickr8k/dev-000.tar")
    assert found["text_to_image_r10"] >= 0.62
    assert found["image_to_text_r10"] >= 0.66
    hits, missed = query_hits(mini, shared / "data/photos")
    assert len(hits) >= 36, missed
