# ruff: noqa: TID253 - imported only where a model without an image encoder is opened
"""No image encoder: pixel patches go straight to the projector. **Not native**: opens through vlmkit alone."""

from typing import Any

from torch import Tensor
from torch.nn.functional import unfold
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


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
