"""The names of models and connectors, and the classes behind them. A new one is one class and one line here.

The class of a model is called with a `Checkpoint` and a `Hardware`; `vlmkit.models.types` says how a package adds one.
"""

from vlmkit.io.registry import Registry

EMBEDDERS = Registry(
    "vlmkit.embedders",
    {
        "mini": "vlmkit.models.embedders.mini:open_mini",
        "open_clip": "vlmkit.models.embedders.open_clip:OpenClip",
        # By the model_type in the config.json of transformers.
        "clip": "vlmkit.models.embedders.transformers:Transformers",
        "siglip": "vlmkit.models.embedders.transformers:Transformers",
        "siglip2": "vlmkit.models.embedders.transformers:Transformers",
    },
)
CHAT_MODELS = Registry(
    "vlmkit.chat_models",
    {
        "mini": "vlmkit.models.chat.mini:MiniChat",
        "openai": "vlmkit.models.chat.endpoint:Endpoint",
        "transformers": "vlmkit.models.chat.transformers:ImageTextToText",  # those with a chat template
        "rapidocr": "vlmkit.models.ocr.rapidocr:RapidOcr",
        # Those without one, by the model_type in their config.json.
        "blip": "vlmkit.models.chat.blip:blip",
        "blip-2": "vlmkit.models.chat.blip2:Blip2",
        "instructblip": "vlmkit.models.chat.blip2:InstructBlip",
        "florence2": "vlmkit.models.chat.florence:Florence",
        "paligemma": "vlmkit.models.chat.paligemma:PaliGemma",
    },
)
# What connects the vision tower and the language model of `vlmkit train`: see `vlmkit.models.llava.connectors`.
CONNECTORS = Registry(
    "vlmkit.connectors",
    {
        "mlp": "vlmkit.models.llava.connectors:Mlp",
        "linear": "vlmkit.models.llava.connectors:Linear",
        "qformer": "vlmkit.models.llava.connectors:QFormer",
        "cross-attention": "vlmkit.models.llava.connectors:CrossAttention",
        "adaptive": "vlmkit.models.llava.connectors:Adaptive",
    },
)
