"""open_clip models (Ilharco et al. 2021): preprocessing, tokenizer and activation from their own configuration."""

import contextlib
import copy
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from vlmkit.errors import VlmkitError, reason_of
from vlmkit.io.images import middle
from vlmkit.models.embedders.base import FastTokenizer, TorchEmbedder, silence_libraries
from vlmkit.models.embedders.preprocessing import PictureSteps
from vlmkit.models.resolve import OPEN_CLIP_CONFIG, Checkpoint
from vlmkit.models.types import Hardware

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image


class OpenClip(TorchEmbedder):
    """A CLIP, CustomTextCLIP or CoCa of open_clip, from files that are all on this machine."""

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware) -> None:
        super().__init__(hardware)
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        silence_libraries()
        self._text_config = checkpoint.settings["model_cfg"]["text_cfg"]
        self._checkpoint = checkpoint
        try:
            with self._configured() as name:
                model = open_clip.create_model(name, load_weights=False, pretrained_text=False)
            open_clip.load_checkpoint(model, str(checkpoint.weights[0]))
            self._tokenizer = self._open_tokenizer()
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            what = f"{checkpoint.name} cannot be opened ({reason_of(error)})"
            raise VlmkitError(what, "check the model's files, or download them again") from None
        preprocess = PreprocessCfg(**model.visual.preprocess_cfg)
        self._transform = image_transform_v2(preprocess, is_train=False)
        self._crops = preprocess.resize_mode == "shortest"
        self.picture_steps = PictureSteps.of_open_clip(dataclasses.asdict(preprocess))
        self.model: Any = self.place(model)
        self.size = max(preprocess.size) if isinstance(preprocess.size, tuple | list) else preprocess.size
        self.logit_scale = model.logit_scale.exp().item()
        self.dim = checkpoint.settings["model_cfg"]["embed_dim"]

    @contextlib.contextmanager
    def _configured(self) -> Iterator[str]:
        """A name that open_clip opens with our settings: those of a tag, or with the place of a moved text tower."""
        settings = copy.deepcopy(self._checkpoint.settings)
        if tower := self._checkpoint.places.get("tower"):
            settings["model_cfg"]["text_cfg"] |= {"hf_model_name": str(tower), "hf_model_pretrained": False}
        with tempfile.TemporaryDirectory(prefix="vlmkit-") as folder:
            Path(folder, OPEN_CLIP_CONFIG).write_bytes(orjson.dumps(settings))
            yield f"local-dir:{folder}"

    def _open_tokenizer(self) -> Any:
        """As open_clip.get_tokenizer chooses, but from the files that were found."""
        from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

        options = self._text_config.get("tokenizer_kwargs", {})
        self._length = self._text_config.get("context_length", 77)
        if place := self._checkpoint.places.get("tokenizer"):
            mode = self._text_config.get("tokenizer_mode")
            return HFTokenizer(str(place), context_length=self._length, tokenizer_mode=mode, **options)
        return SimpleTokenizer(context_length=self._length, **options)

    def preprocess(self, image: "Image") -> "np.ndarray":
        """An RGB picture -> (3, H, W) float32."""
        return self._transform(middle(image) if self._crops else image).numpy()

    @contextlib.contextmanager
    def only_what_vectors_need(self) -> Iterator[None]:
        """The last block of a vision transformer that pools its first token computes that token alone."""
        from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

        tower = self.model.visual
        block: Any = tower.transformer.resblocks[-1] if isinstance(tower, VisionTransformer) else None
        if type(block) is not ResidualAttentionBlock or tower.pool_type != "tok" or tower.attn_pool is not None:
            yield
            return

        def first_token(x: "torch.Tensor", **_: Any) -> "torch.Tensor":
            seen, first = block.ln_1(x), x[:, :1]
            first = first + block.ls_1(block.attention(seen[:, :1], seen, seen))
            return first + block.ls_2(block.mlp(block.ln_2(first)))

        block.forward = first_token
        try:
            yield
        finally:
            del block.forward

    def encode_images(self, inputs: "dict[str, torch.Tensor]") -> "torch.Tensor":
        return self.model.encode_image(inputs["pixel_values"])

    def encode_texts(self, inputs: "dict[str, torch.Tensor]") -> "torch.Tensor":
        return self.model.encode_text(inputs["input_ids"])

    def tokens(self, texts: list[str]) -> "dict[str, torch.Tensor]":
        return {"input_ids": self._tokenizer(texts)}

    def fast_tokenizer(self) -> FastTokenizer | None:
        from open_clip.tokenizer import SimpleTokenizer

        from vlmkit.models.embedders.tokenizers import of_open_clip, of_transformers

        options = self._text_config.get("tokenizer_kwargs", {})
        if isinstance(self._tokenizer, SimpleTokenizer):
            return FastTokenizer(options.get("clean", "lower"), of_open_clip(self._tokenizer, self._length))
        if self._text_config.get("tokenizer_mode") or options.get("strip_sep_token"):
            return None
        made = of_transformers(self._tokenizer.tokenizer, self._length)
        return FastTokenizer(options.get("clean", "whitespace"), made) if made else None
