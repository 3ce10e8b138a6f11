"""Make `mini` from captioned pictures and two PyPI packages (extra `recipe`):

    python -m vlmkit.recipes.mini.train_embedder TRAIN.tar... --val DEV.tar -o DIR

Prepares the towers, trains as `vlmkit train contrastive` does, packs, measures the packed model on DEV, writes DIR.
The same command on the same machine makes the same bytes. One JSON object a line on standard error tells how it goes.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip import IMAGENET_CLASSNAMES
from safetensors.numpy import load_file

from vlmkit.errors import VlmkitError
from vlmkit.io.executor import ahead
from vlmkit.io.files import atomic_folder, check_new_folder
from vlmkit.io.records import batched
from vlmkit.models.embedders.mini import CONFIG, CONTEXT, SIZE, Mini
from vlmkit.recipes.mini.export_embedder import NAMES_WEIGHT, pack
from vlmkit.recipes.mini.model_cards import model_card
from vlmkit.recipes.mini.towers import choose_pieces
from vlmkit.train.config import LitConfig
from vlmkit.train.contrastive.model import retrieval
from vlmkit.train.contrastive.packaged_towers import text_tower, vision_tower
from vlmkit.train.contrastive.run import train
from vlmkit.train.contrastive.sampler import open_sample, read_samples
from vlmkit.train.data.samples import Captioned

PIECES = 21_500  # of the vocabulary's 30,522; captions, class names and a dictionary keep theirs
EPOCHS = 40
LETTERS = re.compile(r"[a-z]+")


def words_of(texts: Iterable[str]) -> set[str]:
    """The words of `texts`, in lower case."""
    return {word for text in texts for word in LETTERS.findall(text.lower())}


def vectors(model: Mini, samples: list[Captioned]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pictures (N, D), captions (M, D), owner (M,)) of `samples` by the packed model."""
    opened = ahead(samples, lambda sample: model.preprocess(open_sample(sample, SIZE)), workers=2, depth=64)
    pictures = np.concatenate([model.embed_images(np.stack(some)) for some in batched(opened, 32)])
    captions = model.embed_texts([caption for s in samples for caption in s.captions])
    return pictures, captions, np.repeat(np.arange(len(samples)), [len(s.captions) for s in samples])


def fit_scale(pictures: np.ndarray, captions: np.ndarray, owner: np.ndarray) -> float:
    """What cosines must be multiplied by for the likeliest probabilities of captions given pictures.

    Each picture chooses among its first caption and those of all others: InfoNCE with the scale alone free.
    """
    first = np.unique(owner, return_index=True)[1]
    scores = torch.from_numpy(pictures.astype(np.float64) @ captions[first].astype(np.float64).T)
    target = torch.arange(len(scores))
    scales = np.geomspace(1, 200, 400)
    losses = [torch.nn.functional.cross_entropy(scale * scores, target).item() for scale in scales]
    return round(float(scales[int(np.argmin(losses))]), 2)


def likeness(model: Mini, trained: Path, samples: list[Captioned]) -> float:
    """Mean cosine between the packed model's trained block of captions and what open_clip computes from `trained`."""
    from vlmkit.train.contrastive.two_towers import open_folder

    captions = [sample.captions[0] for sample in samples[:64]]
    clip, _, tokenizer = open_folder(trained)
    clip.eval()
    with torch.inference_mode():
        exact = clip.encode_text(tokenizer(captions), normalize=True).numpy()  # (n, D)
    packed = model.embed_texts(captions)[:, : exact.shape[1]]
    packed /= np.linalg.norm(packed, axis=1, keepdims=True)
    return float((exact * packed).sum(1).mean())


def make(data: list[str], val: str, out: Path, *, limit: int | None, epochs: int, seed: int) -> None:
    """The recipe from end to end. Raises VlmkitError; then `out` is not there."""
    check_new_folder(out)

    def log(entry: dict[str, Any]) -> None:
        sys.stderr.write(json.dumps(entry) + "\n")
        sys.stderr.flush()

    validation = read_samples([val], limit=limit)
    training = read_samples(data, limit=limit)
    words = words_of(caption for sample in training for caption in sample.captions) | words_of(IMAGENET_CLASSNAMES)
    with tempfile.TemporaryDirectory(prefix="mini-") as temporary, atomic_folder(out) as made:
        work = Path(temporary)
        config = LitConfig(
            data=data,
            out=work / "trained",
            vision=str(vision_tower(work / "vision")),
            text=str(text_tower(work / "text", partial(choose_pieces, needed=words, size=PIECES))),
            val=val,
            limit=limit,
            seed=seed,
            epochs=epochs,
            best=False,
        )
        trained = train(config, log)
        pack(trained, work / "vision", made)
        weights = load_file(trained / "model.safetensors")
        description: dict[str, Any] = {
            "context": CONTEXT,
            "names_weight": NAMES_WEIGHT,
            "size": SIZE,
            "logit_scale": 1.0,
        }
        description["dim"] = _output_dim(made / "text.onnx")
        _write(made / CONFIG, description)
        model = Mini(str(made))
        pictures, captions, owner = vectors(model, validation)
        found = retrieval(torch.from_numpy(pictures), torch.from_numpy(captions), torch.from_numpy(owner))
        description |= {
            "logit_scale": fit_scale(pictures, captions, owner),
            "figures": found
            | {
                "pictures": len(validation),
                "packed_likeness": round(likeness(model, trained, validation), 4),
                "trained_logit_scale": round(float(np.exp(weights["logit_scale"])), 4),
            },
            "recipe": {
                "pictures": len(training),
                "captions": sum(len(sample.captions) for sample in training),
                "epochs": config.epochs,
                "batch_size": config.batch_size,
                "text_layers": config.text_layers,
                "lr": config.lr,
                "text_lr": config.text_lr,
                "pieces": PIECES,
                "seed": seed,
            },
        }
        _write(made / CONFIG, description)
        (made / "MODEL_CARD.md").write_text(model_card(description))
        log(description["figures"])


def _output_dim(model: Path) -> int:
    import onnx

    return int(onnx.load(model).graph.output[0].type.tensor_type.shape.dim[1].dim_value)


def _write(path: Path, description: dict[str, Any]) -> None:
    path.write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vlmkit.recipes.mini.train_embedder", description="Make the model mini."
    )
    parser.add_argument("data", nargs="+", metavar="TRAIN", help="shards or records with captions")
    parser.add_argument("--val", required=True, metavar="DEV", help="other ones, to measure on")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="new folder for the model")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures of TRAIN and of DEV")
    parser.add_argument(
        "--epochs", type=int, default=EPOCHS, metavar="N", help=f"times through TRAIN, {EPOCHS} by default"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="0 by default")
    a = parser.parse_args()
    try:
        make(a.data, a.val, a.out, limit=a.limit, epochs=a.epochs, seed=a.seed)
    except VlmkitError as error:
        sys.stderr.write(f"recipe: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
