"""open_clip models from a folder, such as the ones that `vlmkit train contrastive` makes."""

from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from vlmkit.errors import VlmkitError
from vlmkit.images import middle
from vlmkit.models import Hardware, hush

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


class OpenClip:
    """A CLIP of open_clip (Ilharco et al. 2021); preprocessing, tokenizer and activation from its own config."""

    def __init__(self, folder: str, hardware: Hardware) -> None:
        import open_clip
        import torch

        hush()
        self._folder = Path(folder)
        name = f"local-dir:{folder}"
        self.device = torch_device(hardware.device)
        try:
            model, _, self._transform = open_clip.create_model_and_transforms(name, **self._moved(), device=self.device)
            self._tokenizer = open_clip.get_tokenizer(name)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise VlmkitError(f"{folder} cannot be opened ({error})", "check the folder, or make it again") from None
        self._model = model.eval()
        self._crops = model.visual.preprocess_cfg["resize_mode"] == "shortest"
        self._torch = torch
        size = model.visual.image_size
        self.size = max(size) if isinstance(size, tuple) else size
        self.logit_scale = float(model.logit_scale.exp())
        self.dim = self.embed_texts(["a"]).shape[1]

    def _moved(self) -> dict[str, dict[str, object]]:
        """The text configuration with the folder as it is named now: open_clip keeps a Hugging Face tower's path."""
        text = orjson.loads((self._folder / "open_clip_config.json").read_bytes())["model_cfg"]["text_cfg"]
        return {"text_cfg": text | {"hf_model_name": str(self._folder)}} if "hf_model_name" in text else {}

    def files(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if path.suffix in (".json", ".safetensors", ".txt")]

    def preprocess(self, image: "Image") -> "np.ndarray":
        return self._transform(middle(image) if self._crops else image).numpy()

    def embed_images(self, pictures: "np.ndarray") -> "np.ndarray":
        with self._torch.inference_mode():
            batch = self._torch.from_numpy(pictures).to(self.device)
            return self._model.encode_image(batch, normalize=True).float().cpu().numpy()

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        with self._torch.inference_mode():
            return self._model.encode_text(self._tokenizer(texts).to(self.device), normalize=True).float().cpu().numpy()


def torch_device(wanted: str) -> str:
    """The torch device for `--device`. Raises VlmkitError where a device that was asked for is not there."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, found in there.items() if found)
    if not there[wanted]:
        raise VlmkitError(f"no {wanted} device here", "use --device cpu or leave it out")
    return wanted
