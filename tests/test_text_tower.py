"""The text tower in the cache: the second search starts without PyTorch and finds the same."""

import json
import subprocess
import sys
from pathlib import Path

import dual_encoders
import numpy as np
import open_clip
import pytest
from helpers import picture, records
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.models.embedders.onnx_export import PROBE_TEXTS as TEXTS
from vlmkit.models.embedders.tokenizers import clean_text, of_open_clip
from vlmkit.models.load import load_embedder
from vlmkit.models.types import Hardware

pytestmark = pytest.mark.slow

HEAVY = ("torch", "open_clip", "transformers")
SHOW_MODULES = """
import sys
from vlmkit.cli.app import main
code = main(sys.argv[1:])
print("modules", *sorted(name for name in sys.modules if "." not in name), file=sys.stderr)
sys.exit(code)
"""


def search(folder: Path, environment: dict[str, str], *arguments: object) -> tuple[list[dict], set[str]]:
    """(hits, top-level modules that were imported) of one search in a process of its own."""
    line = [sys.executable, "-c", SHOW_MODULES, "search", "-i", "./i", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    reported = done.stderr.decode().splitlines()
    assert len(reported) == 1, reported
    return records(done.stdout), set(reported[0].split()[1:])


@pytest.mark.parametrize("maker", ["open_clip_quick_gelu", "open_clip_siglip", "clip", "siglip", "siglip2"])
def test_the_tower_embeds_as_the_model(tmp_path: Path, maker: str, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = getattr(dual_encoders, maker)(tmp_path / "model")
    whole = load_embedder(str(model), Hardware("cpu"))
    quick = load_embedder(str(model), Hardware("cpu"), quick_texts=True)
    assert quick.identity == whole.identity
    texts = [*TEXTS, *reversed(TEXTS)]
    cosines = (whole.embed_texts(texts) * quick.embed_texts(texts)).sum(axis=1)
    assert cosines.min() > 0.9999
    (card,) = (tmp_path / "cache/vlmkit/towers").glob("*/tower.json")
    assert json.loads(card.read_text())["cosine"] > 0.9999


def test_the_second_search_does_not_import_torch(vlmkit, warm, environment, tmp_path: Path) -> None:
    model = dual_encoders.open_clip_quick_gelu(tmp_path / "model")
    paths = [picture(tmp_path / f"{color}.png", color) for color in ("red", "green", "blue")]
    vlmkit("index", "-i", "./i", stdin=warm("embed", "-m", model, *paths).stdout)
    query = ("A red Car, it's 3", "--json")
    first, modules = search(tmp_path, environment, *query)
    assert set(HEAVY) <= modules
    second, modules = search(tmp_path, environment, *query)
    assert not modules & set(HEAVY), modules & set(HEAVY)
    assert "onnxruntime" in modules and second == first

    (entry,) = (Path(environment["XDG_CACHE_HOME"]) / "vlmkit/towers").iterdir()
    data = next(entry.glob("text.onnx.data"), entry / "text.onnx")
    held = bytearray(data.read_bytes())
    held[len(held) // 2] ^= 0xFF
    data.write_bytes(held)
    mended, modules = search(tmp_path, environment, *query)
    assert "torch" in modules and mended == first, "a damaged tower is written again"


def test_a_cache_that_cannot_be_written_is_done_without(vlmkit, warm, environment, tmp_path: Path) -> None:
    model = dual_encoders.siglip(tmp_path / "model")
    vlmkit("index", "-i", "./i", stdin=warm("embed", "-m", model, picture(tmp_path / "a.png")).stdout)
    (tmp_path / "file").write_text("no folder")
    environment["XDG_CACHE_HOME"] = str(tmp_path / "file")
    done = warm("search", "-i", "./i", "a", "--json", "-v")
    assert len(records(done.stdout)) == 1 and b"texts are embedded by PyTorch" in done.stderr


SIMPLE = open_clip.tokenizer.SimpleTokenizer()
FAST = of_open_clip(SIMPLE, 77)
MARKS = st.sampled_from(["&amp;", "it's", "'LL", "  ", "\u200b", "Ã©", "ß", "İ", "ſ", "…", "日本", "\U0001f408"])


@given(st.lists(st.one_of(MARKS, st.text(max_size=12)), max_size=12).map("".join))
def test_byte_pairs_are_those_of_open_clip(text: str) -> None:
    if "<start_of_text>" in text.lower() or "<end_of_text>" in text.lower():
        return
    (expected,) = SIMPLE([text]).numpy()
    assert np.array_equal(FAST.encode(clean_text(text, "lower")).ids, expected)


@pytest.mark.parametrize("how", ["whitespace", "lower", "canonicalize"])
def test_cleaning_is_that_of_open_clip(how: str) -> None:
    clean = open_clip.tokenizer.get_clean_fn(how)
    for text in [*TEXTS, *(line for line in Path(__file__).read_text().splitlines())]:
        assert clean_text(text, how) == clean(text)
