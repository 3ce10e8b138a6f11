"""The image tower of `mini` as a vision model of transformers, so that a LLaVA is trained on it like on any other.

Importing this module registers it with AutoConfig and AutoModel; it has no weights of its own and is always frozen.

    config = LlavaConfig(
        vision_config=MiniGridConfig(), text_config=..., image_token_index=...,
        vision_feature_layer=-1, vision_feature_select_strategy="full", image_seq_length=49,
    )
    processor = LlavaProcessor(image_processor(), tokenizer, patch_size=32, vision_feature_select_strategy="full")

No image encoder: pixel patches go straight to the projector. **Not native**: opens through vlmkit alone.
"""

import os
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import unfold
from transformers import AutoConfig, AutoModel, CLIPImageProcessor, PreTrainedConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from vlmkit.errors import VlmkitError
from vlmkit.models import fingerprint
from vlmkit.models.chat.mini_graphs import IMAGE, SIDE, WIDTH, Features
from vlmkit.models.embedders.mini import SIZE
from vlmkit.models.resolve import MINI_FOLDER


def tower_fingerprint() -> str:
    """Twelve hex digits of the image tower that ships with vlmkit."""
    return fingerprint.fingerprint([MINI_FOLDER / IMAGE])


class MiniGridConfig(PretrainedConfig):
    """`identity` is that of the tower whose features a model was trained on."""

    model_type = "vlmkit_mini_grid"

    def __init__(
        self,
        hidden_size: int = WIDTH,
        image_size: int = SIZE,
        patch_size: int = SIZE // SIDE,
        identity: str = "",
        **rest: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.image_size = image_size
        self.patch_size = patch_size
        self.identity = identity or tower_fingerprint()
        super().__init__(**rest)


class MiniGridModel(PreTrainedModel):
    """EfficientNet-Lite0 up to its last 7 x 7 grid, in int8, by ONNX Runtime on the CPU."""

    config_class = MiniGridConfig
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: MiniGridConfig) -> None:
        super().__init__(config)
        if config.identity != (here := tower_fingerprint()):
            what = f"the model was trained on the image tower {config.identity}, but this is {here}"
            raise VlmkitError(what, "use the version of vlmkit that trained it")
        self.post_init()

    @cached_property
    def _features(self) -> Features:
        return Features(MINI_FOLDER, len(os.sched_getaffinity(0)))

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor, **_: object) -> BaseModelOutput:
        """(N, 3, 224, 224), whole numbers from 0 to 255 in any type -> features (N, 49, 1280) float32, row by row.

        Whole numbers up to 255 are exact in bfloat16 as well, so no precision changes the picture.
        """
        pictures = pixel_values.float().round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        grid = self._features(pictures.contiguous().cpu().numpy())
        features = torch.from_numpy(grid).to(pixel_values.device)
        return BaseModelOutput(last_hidden_state=features, hidden_states=(features,))


def image_processor() -> CLIPImageProcessor:
    """transformers' own processor with the settings of this tower: shortest side 224, the middle, values 0 to 255.

    A square of 224 pixels is left alone, as by Mini.preprocess. Of larger pictures, which that one crops first and
    shrinks in two steps, eight photographs differed by 0.1 to 1.4 levels of 255 in the mean, and the cosine of their
    features was 0.98 to 0.999.
    """
    return CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, do_rescale=False, do_normalize=False
    )


AutoConfig.register(MiniGridConfig.model_type, MiniGridConfig)
AutoModel.register(MiniGridConfig, MiniGridModel)


class PatchesConfig(PreTrainedConfig):
    """Square pictures of `image_size` pixels in squares of `patch_size`."""

    model_type = "vlmkit_patches"

    def __init__(self, image_size: int = 224, patch_size: int = 32, **rest: Any) -> None:
        super().__init__(**rest)
        self.image_size, self.patch_size = image_size, patch_size
        self.hidden_size = 3 * patch_size * patch_size


class PatchesModel(PreTrainedModel):
    """Has no weights: (P, 3, H, W) -> (P, N, 3 x patch x patch), row by row, as in Fuyu (Bavishi and others, 2023)."""

    config_class = PatchesConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PatchesConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        side = self.config.patch_size
        patches = unfold(pixel_values, side, stride=side).transpose(1, 2)  # (P, N, 3 side side)
        return BaseModelOutput(last_hidden_state=patches, hidden_states=(patches,))


AutoConfig.register(PatchesConfig.model_type, PatchesConfig)
AutoModel.register(PatchesConfig, PatchesModel)
