"""CLIP, SigLIP and SigLIP 2 of transformers, with the processor that their own files configure."""

from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError, reason_of
from vlmkit.io.images import middle
from vlmkit.models.embedders.base import FastTokenizer, TorchEmbedder, silence_libraries
from vlmkit.models.resolve import Checkpoint
from vlmkit.models.types import Hardware

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

NAFLEX = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


class Transformers(TorchEmbedder):
    """A dual encoder of transformers (Wolf et al. 2020).

    CLIP: Radford et al. 2021. SigLIP: Zhai et al. 2023. SigLIP 2, whose NaFlex form keeps the picture's proportions:
    Tschannen et al. 2025. The SigLIPs were trained on lower case, padded to their full length.
    """

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware) -> None:
        super().__init__(hardware)
        from transformers import AutoModel, AutoProcessor

        silence_libraries()
        try:
            model = AutoModel.from_pretrained(checkpoint.folder, dtype=self._torch.float32, use_safetensors=True)
            self._processor = AutoProcessor.from_pretrained(checkpoint.folder)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, AttributeError) as error:
            reason = reason_of(error)
            raise VlmkitError(f"{checkpoint.name} cannot be opened ({reason})", "download the model again") from None
        config: Any = model.config
        self.model: Any = self.place(model)
        self._crops = getattr(self._processor.image_processor, "do_center_crop", False)
        self._siglip = config.model_type != "clip"
        self._naflex = config.model_type == "siglip2"
        self._length = config.text_config.max_position_embeddings
        self.dim = config.vision_config.hidden_size if self._siglip else config.projection_dim
        self.logit_scale = model.logit_scale.exp().item()
        self.size = self._side(config.vision_config)

    def _side(self, vision: Any) -> int:
        """The side in pixels of a square picture as the model gets it."""
        if not self._naflex:
            return vision.image_size
        from PIL import Image

        return int(vision.patch_size * len(self.preprocess(Image.new("RGB", (8, 8)))) ** 0.5)

    def preprocess(self, image: "Image") -> "np.ndarray":
        """An RGB picture -> (3, H, W) float32; for NaFlex (patches, values of a patch + 3) float32.

        The three further columns of NaFlex are whether the patch is part of the picture, and the picture's height and
        width in patches.
        """
        import numpy as np

        made = self._processor(images=[middle(image) if self._crops else image], return_tensors="pt")
        if not self._naflex:
            return made["pixel_values"][0].numpy()
        patches, mask, shape = (made[name][0].numpy() for name in NAFLEX)
        return np.concatenate([patches, mask[:, None], np.tile(shape, (len(patches), 1))], axis=1, dtype=np.float32)

    def picture_inputs(self, pictures: "torch.Tensor") -> "dict[str, torch.Tensor]":
        if not self._naflex:
            return {"pixel_values": pictures}
        values = (pictures[:, :, :-3].contiguous(), pictures[:, :, -3].long(), pictures[:, 0, -2:].long())
        return dict(zip(NAFLEX, values, strict=True))

    def encode_images(self, inputs: "dict[str, torch.Tensor]") -> "torch.Tensor":
        return _vectors(self.model.get_image_features(**inputs))

    def encode_texts(self, inputs: "dict[str, torch.Tensor]") -> "torch.Tensor":
        return _vectors(self.model.get_text_features(**inputs))

    def tokens(self, texts: list[str]) -> "dict[str, torch.Tensor]":
        texts = [text.lower() for text in texts] if self._siglip else texts
        options = {"padding": "max_length", "truncation": True, "max_length": self._length, "return_tensors": "pt"}
        return dict(self._processor.tokenizer(texts, **options))

    def fast_tokenizer(self) -> FastTokenizer | None:
        from vlmkit.models.embedders.tokenizers import of_transformers

        made = of_transformers(self._processor.tokenizer, self._length)
        return FastTokenizer("case" if self._siglip else "none", made) if made else None


def _vectors(found: Any) -> "torch.Tensor":
    """transformers 5 returns them inside an output, 4 as they are."""
    return getattr(found, "pooler_output", found)
