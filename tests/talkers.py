"""Small vision-language models with random weights, saved as `vlmkit train` saves them, on the image tower of mini."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers import decoders as decode
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers import PreTrainedTokenizerFast as FastTokenizer

from vlmkit.models.mini.grid import MiniGridConfig, image_processor

MARKS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<user>", "<reply>"]
MERGED = [" a", " t", "he", " the", " o", " of", "in", "ing", "er", "on", "at", "do", "dog", "re", "red"]
PIECES = [*"abcdefghijklmnopqrstuvwxyz0123456789?.,' ", *MERGED]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<user>{% elif m['role'] == 'assistant' %}<reply>{% endif %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
)


def tokenizer() -> FastTokenizer:
    """Letters and a few pieces, lower case; the marks of the chat are tokens of their own."""
    vocabulary = {token: number for number, token in enumerate([*MARKS, *PIECES])}
    merges = [(piece[:i], piece[i:]) for piece in PIECES for i in range(1, len(piece)) if _both(piece, i, vocabulary)]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    made.decoder = decode.Fuse()
    return FastTokenizer(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<user>", "<reply>"],
        chat_template=TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
    )


def _both(piece: str, at: int, vocabulary: dict[str, int]) -> bool:
    return piece[:at] in vocabulary and piece[at:] in vocabulary


def talker(folder: Path, seed: int = 0, **text: Any) -> LlavaForConditionalGeneration:
    """A LLaVA on mini's image tower, its folder written. `text` are settings of its LlamaConfig."""
    words = tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 512}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlavaConfig(
        vision_config=MiniGridConfig(),
        text_config=LlamaConfig(**{"vocab_size": len(words)} | ids | sizes | text),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=49,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed_tokens" not in name:
                parameter.mul_(10)  # so that pictures and words make a difference
        model.get_input_embeddings().weight[2] *= 2  # so that replies end
    model.save_pretrained(folder)
    LlavaProcessor(image_processor(), words, patch_size=32, vision_feature_select_strategy="full").save_pretrained(
        folder
    )
    return model
