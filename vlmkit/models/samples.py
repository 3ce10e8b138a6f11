"""Fixed texts and pictures on which a changed form of a model is held against the model itself."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from vlmkit.models.torch_embedder import TorchEmbedder

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
