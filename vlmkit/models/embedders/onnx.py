"""Fixed texts and pictures on which a changed form of a model is held against the model itself.

Tokens without PyTorch: the cleaning that open_clip gives texts, and its tokenizer in the form of `tokenizers`.

Towers of a PyTorch model as ONNX Runtime runs them, from a folder of the cache that export.py wrote.

Write the towers of a PyTorch model as ONNX, so that later commands run them without importing PyTorch.

A PyTorch model with its matrix products in int8, on the CPU by ONNX Runtime.

A PyTorch model whose texts go through its exported tower: a search starts without importing PyTorch.
"""

import contextlib
import hashlib
import html
import io
import os
import shutil
import string
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from vlmkit.errors import VlmkitError
from vlmkit.io.files import cache_folder
from vlmkit.models import fingerprint as fingerprints
from vlmkit.models.batching import BatchSize
from vlmkit.models.embedders.base import TorchEmbedder
from vlmkit.models.registry import Embedder, Hardware

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime
    import tokenizers
    import torch
    from PIL.Image import Image

    from vlmkit.models.embedders.base import TorchEmbedder


TEXTS = [
    "a photo of a cat.",
    "",
    "x",
    "A Red CAR, parked — in the RAIN!",
    "two dogs   running\ton the\nbeach  ",
    "it's the neighbour's; they'll say we've won, I'd guess 'tis",
    "3.14159 and 2,718 in 2024 (№ 42) #hash @home 100% $5 a_b-c/d\\e",
    "Ein großes Fäßchen voller Äpfel, naïve café",
    "東京の夜景、雨の中の人々",
    "Москва ночью, красная площадь",
    "صورة قطة تجلس على سجادة",
    "a cat \U0001f408 and a heart ❤️ \U0001f468‍\U0001f469‍\U0001f467",
    "&lt;b&gt;bold &amp; brave&lt;/b&gt; &eacute;",
    "schÃ¶n mojibake â€œquotedâ€\x9d",
    "“curly quotes” … ﬁne ligatures ½ ²",
    "zero\u200bwidth and a non\u00a0breaking space",
    "supercalifragilisticexpialidocious" * 3,
    "a lighthouse at the edge of the sea " * 3,
    " ".join(["long", "text", "that", "is", "cut"] * 40),
    "!!!???...---" * 30,
]
SIZES = ((64, 64), (97, 61), (50, 201), (320, 240), (16, 16), (333, 250))


def pictures(embedder: "TorchEmbedder") -> "torch.Tensor":
    """A stack of preprocessed pictures: noise, coarse noise, gradients, stripes, in several proportions."""
    import numpy as np
    import torch
    from PIL import Image

    random = np.random.default_rng(0)
    made = []
    for number, (width, height) in enumerate(SIZES):
        y, x = np.mgrid[:height, :width]
        smooth = np.stack([255 * x / width, 255 * y / height, 127 + 127 * np.sin((x + y) / (3 + number))], axis=-1)
        noise = random.integers(0, 256, (height, width, 3))
        coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3), np.uint8)).resize((width, height))
        made += [Image.fromarray(array.astype(np.uint8)) for array in (smooth, noise)] + [coarse]
    return torch.from_numpy(np.stack([embedder.preprocess(image) for image in made]))


WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def cleaned(text: str, how: str) -> str:
    """`text` as the model's own tokenizer cleans it: none, case, or open_clip's whitespace, lower, canonicalize."""
    if how == "none":
        return text
    if how == "case":
        return text.lower()
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else nothing to mend, and no import
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if how == "canonicalize":
        text = text.replace("_", " ").translate(WITHOUT_PUNCTUATION)
    text = " ".join(text.split())
    return text if how == "whitespace" else text.lower()


def of_transformers(tokenizer: Any, length: int) -> "tokenizers.Tokenizer | None":
    """The fast tokenizer inside one of transformers, cutting and padding to `length` tokens; None if it is slow."""
    from tokenizers import Tokenizer

    inside = getattr(tokenizer, "backend_tokenizer", None)
    if inside is None or tokenizer.pad_token_id is None:
        return None
    made = Tokenizer.from_str(inside.to_str())
    made.enable_truncation(length, direction=tokenizer.truncation_side)
    made.enable_padding(
        length=length,
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id,
        pad_type_id=tokenizer.pad_token_type_id,
        pad_token=tokenizer.pad_token,
    )
    return made


def bytes_pairs(simple: Any, length: int) -> "tokenizers.Tokenizer":
    """open_clip's SimpleTokenizer (Radford et al. 2021): byte pairs, marks around, zeros up to `length`.

    A text that spells out one of the marks is cut otherwise; nothing else differs.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    marks = [simple.decoder[number] for number in (simple.sot_token_id, simple.eot_token_id)]
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)
    made = Tokenizer(models.BPE(dict(simple.encoder), merges, end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"(?i){WORDS}"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    pairs = [(mark, simple.encoder[mark]) for mark in marks]
    made.post_processor = processors.TemplateProcessing(single=f"{marks[0]} $A {marks[1]}", special_tokens=pairs)
    made.enable_truncation(length)
    made.enable_padding(length=length, pad_id=0, pad_token=simple.decoder[0])
    return made


FORM = 1  # of the folder
CARD = "tower.json"
TEXTS_AT_ONCE = 64


class Tower:
    """Embeds texts, and in int8 pictures too, without PyTorch. The card tells how; see `export.write`."""

    device = "cpu"

    def __init__(self, folder: Path, card: dict[str, Any], threads: int | None) -> None:
        self.dim, self.size, self.logit_scale = card["dim"], card["size"], card["logit_scale"]
        self._folder, self._card, self._threads = folder, card, threads
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._tokenizer: Any = None

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        """N texts -> N x D float32, L2-normalised."""
        import numpy as np

        parts = [
            self.run("text", self.tokens(texts[i : i + TEXTS_AT_ONCE])) for i in range(0, len(texts), TEXTS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def tokens(self, texts: Sequence[str]) -> "dict[str, np.ndarray]":
        """What the text tower takes, each N x T int64."""
        import numpy as np

        if self._tokenizer is None:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
        found = self._tokenizer.encode_batch([cleaned(text, self._card["clean"]) for text in texts])
        columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        names = self._card["inputs"]["text"]
        return {name: np.array([getattr(one, columns[name]) for one in found], np.int64) for name in names}

    def run(self, side: str, inputs: "dict[str, np.ndarray]") -> "np.ndarray":
        """N x D of the tower `side`, text or image."""
        if side not in self._sessions:
            self._sessions[side] = session(self._folder / f"{side}.onnx", self._threads)
        return self._sessions[side].run(None, inputs)[0]


def session(path: Path, threads: int | None) -> "onnxruntime.InferenceSession":
    """An ONNX graph, opened on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def place(model: str) -> Path:
    """The folder of the towers of the model with the fingerprint `model`."""
    return cache_folder() / "towers" / model


def open_tower(model: str, threads: int | None = None) -> Tower | None:
    """The towers of the model with the fingerprint `model`; None where there are none, or none that are whole."""
    folder = place(model)
    try:
        card = orjson.loads((folder / CARD).read_bytes())
        if card["form"] != FORM or card["model"] != model or card["digits"] != content(folder):
            return None
        return Tower(folder, card, threads)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def content(folder: Path) -> str:
    """Digits of what the folder holds beside the card."""
    return fingerprints.fingerprint([path for path in sorted(folder.iterdir()) if path.name != CARD])


SAME, CLOSE = 0.9999, 0.98  # the lowest cosine to PyTorch in fp32: of the text tower, of int8


class NoTower(Exception):
    """This model's tower cannot be written, or is not the same; the text says why."""


def write_text_tower(embedder: TorchEmbedder, model: str) -> Tower:
    """The text tower of `embedder` (on the CPU, in fp32) in the cache, keyed by fingerprint. Raises NoTower."""
    with _entry(embedder, model) as (folder, card):
        _write_texts(embedder, folder, card)
        tower = Tower(folder, card, None)
        _same_tokens(embedder, tower)
        card["cosine"] = _lowest(embedder.embed_texts(TEXTS), tower.embed_texts(TEXTS))
        if card["cosine"] < SAME:
            raise NoTower(f"the exported text tower differs, cosine {card['cosine']:.5f}")
    return _opened(model)


def write_int8(embedder: TorchEmbedder, model: str, name: str) -> Tower:
    """Both towers of `embedder` (on the CPU, in fp32) with their matrix products in int8, weights by channel.

    ONNX Runtime's dynamic quantisation: weights once, activations as they come. Raises NoTower, and VlmkitError where
    a vector of the samples has a cosine under 0.98 to that of fp32.
    """
    with _entry(embedder, model) as (folder, card):
        made = pictures(embedder)
        _write_texts(embedder, folder, card)
        _export(embedder.encode_images, embedder.picture_inputs(made), embedder, folder, "image", card)
        for side in ("text", "image"):
            _quantize(folder, side)
        tower = Tower(folder, card, None)
        _same_tokens(embedder, tower)
        inputs = {k: v.numpy() for k, v in embedder.picture_inputs(made).items()}
        texts = _lowest(embedder.embed_texts(TEXTS), tower.embed_texts(TEXTS))
        images = _lowest(embedder.embed_images(made.numpy()), tower.run("image", inputs))
        card["cosine"] = min(texts, images)
        if card["cosine"] < CLOSE:
            what = f"int8 changes {name} too much: cosine to fp32 {images:.3f} for pictures, {texts:.3f} for texts"
            raise VlmkitError(f"{what} ({CLOSE} is needed)", "use --precision fp32 or bf16")
    return _opened(model)


@contextlib.contextmanager
def _entry(embedder: TorchEmbedder, model: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A temporary folder and its card, which take their place in the cache when the block ends well."""
    final = place(model)
    final.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{model}.", dir=final.parent))
    card: dict[str, Any] = {"form": FORM, "model": model, "inputs": {}}
    card |= {"dim": embedder.dim, "size": embedder.size, "logit_scale": embedder.logit_scale}
    try:
        yield made, card
        card["digits"] = content(made)
        (made / CARD).write_bytes(orjson.dumps(card))
        shutil.rmtree(final, ignore_errors=True)
        with contextlib.suppress(OSError):  # another command was quicker
            os.rename(made, final)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _opened(model: str) -> Tower:
    if (tower := open_tower(model)) is None:
        raise NoTower("the cache cannot be written")
    return tower


def _write_texts(embedder: TorchEmbedder, folder: Path, card: dict[str, Any]) -> None:
    fast = embedder.fast_tokenizer()
    if fast is None:
        raise NoTower("its tokenizer needs PyTorch")
    fast.tokenizer.save(str(folder / "tokenizer.json"))
    card["clean"] = fast.clean
    _export(embedder.encode_texts, embedder.tokens(TEXTS[:2]), embedder, folder, "text", card)


def _export(
    encode: "Callable[[dict[str, torch.Tensor]], torch.Tensor]",
    inputs: "dict[str, torch.Tensor]",
    embedder: TorchEmbedder,
    folder: Path,
    side: str,
    card: dict[str, Any],
) -> None:
    """`encode` as folder/side.onnx, for any number of rows; vectors are normalised inside the graph."""
    import torch

    names = list(inputs)

    class Encode(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = embedder.model

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            vectors = encode(dict(zip(names, values, strict=True)))
            return torch.nn.functional.normalize(vectors, dim=-1)

    rows = torch.export.Dim("rows")
    card["inputs"][side] = names
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's own
            torch.onnx.export(
                Encode().eval(),
                tuple(inputs.values()),
                str(folder / f"{side}.onnx"),
                input_names=names,
                output_names=["vectors"],
                dynamic_shapes=(tuple({0: rows} for _ in names),),
                dynamo=True,
                external_data=True,
                verbose=False,
            )
    except Exception as error:  # the exporter's errors have no common base
        raise NoTower(f"it cannot be exported ({' '.join(str(error).split())[:160]})") from None


def _quantize(folder: Path, side: str) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source, made = folder / f"{side}.onnx", folder / f"{side}.int8.onnx"
    quantize_dynamic(
        source, made, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
    )
    for path in folder.glob(f"{side}.onnx*"):
        path.unlink()
    made.rename(source)


def _same_tokens(embedder: TorchEmbedder, tower: Tower) -> None:
    ours, theirs = tower.tokens(TEXTS), embedder.tokens(TEXTS)
    for name, value in theirs.items():
        if ours[name].shape != tuple(value.shape) or (ours[name] != value.numpy()).any():
            raise NoTower("its tokens without PyTorch differ")


def _lowest(one: "np.ndarray", other: "np.ndarray") -> float:
    """The lowest cosine of the rows of two arrays of unit vectors."""
    return float((one * other).sum(axis=1).min())


SCHEME = "int8: matrix products, weights by channel, activations as they come, 1"


def int8_fingerprint(fingerprint: str) -> str:
    """The fingerprint of the int8 form of the model with `fingerprint`: its vectors are others."""
    return hashlib.sha256(f"{fingerprint} {SCHEME}".encode()).hexdigest()[:12]


class Int8:
    """The int8 form of a model, quantised and measured once and kept in the cache under its own fingerprint."""

    identity: str

    device = "cpu"

    def __init__(
        self, name: str, fingerprint: str, open_model: Callable[[Hardware], TorchEmbedder], hardware: Hardware
    ) -> None:
        if hardware.device not in ("auto", "cpu"):
            raise VlmkitError(
                f"int8 runs on the CPU, not on {hardware.device}", "use --precision bf16, or leave --device out"
            )
        self._open_model = open_model
        self._whole: TorchEmbedder | None = None
        self._tower = open_tower(fingerprint, hardware.threads) or self._made(name, fingerprint)
        self.dim, self.size, self.logit_scale = self._tower.dim, self._tower.size, self._tower.logit_scale
        self.batch = BatchSize()

    def _made(self, name: str, fingerprint: str):

        try:
            return write_int8(self._model(), fingerprint, name)
        except NoTower as error:
            raise VlmkitError(f"{name} has no int8 form: {error}", "use --precision fp32 or bf16") from None

    def _model(self) -> TorchEmbedder:
        if self._whole is None:
            self._whole = self._open_model(Hardware("cpu"))
        return self._whole

    def preprocess(self, image: "Image") -> "np.ndarray":
        return self._model().preprocess(image)

    def embed_images(self, pictures: "np.ndarray") -> "np.ndarray":
        import torch

        inputs = self._model().picture_inputs(torch.from_numpy(pictures))
        return self._tower.run("image", {name: value.numpy() for name, value in inputs.items()})

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        return self._tower.embed_texts(texts)


class QuickTexts:
    """The model, opened only for what its text tower cannot do. The first text has the tower written.

    `warn` hears that this takes a while, `note` why the model itself embeds the texts where it has to.
    """

    identity: str

    def __init__(
        self,
        fingerprint: str,
        open_model: Callable[[Hardware], Embedder],
        hardware: Hardware,
        warn: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self._fingerprint, self._open_model, self._hardware = fingerprint, open_model, hardware
        self._tell, self._note = warn, note
        self._whole: Embedder | None = None
        self._texts: Tower | Embedder | None = open_tower(fingerprint, hardware.threads)

    def _model(self) -> Embedder:
        if self._whole is None:
            self._whole = self._open_model(self._hardware)
        return self._whole

    def _any(self) -> Tower | Embedder:
        return self._texts or self._model()

    @property
    def device(self) -> str:
        return self._any().device

    @property
    def dim(self) -> int:
        return self._any().dim

    @property
    def size(self) -> int:
        return self._any().size

    @property
    def logit_scale(self) -> float:
        return self._any().logit_scale

    @property
    def batch(self) -> BatchSize:
        return self._model().batch

    def preprocess(self, image: "Image") -> "np.ndarray":
        return self._model().preprocess(image)

    def embed_images(self, pictures: "np.ndarray") -> "np.ndarray":
        return self._model().embed_images(pictures)

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        if self._texts is None:
            self._texts = self._written()
        return self._texts.embed_texts(texts)

    def _written(self) -> Tower | Embedder:
        from vlmkit.models.embedders.base import TorchEmbedder

        whole = self._model()
        on_cpu = whole if whole.device == "cpu" else self._open_model(Hardware("cpu"))
        assert isinstance(on_cpu, TorchEmbedder)
        self._tell("writing the model's text tower into the cache, once: the next search is quicker")
        try:
            return write_text_tower(on_cpu, self._fingerprint)
        except (NoTower, OSError) as error:
            self._note(f"texts are embedded by PyTorch: {error}")
            return whole
