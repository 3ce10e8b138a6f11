"""Towers of the real classes, tiny and fresh, for trying a run out: nothing is downloaded, nothing needed."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

from vlmkit.train.rows import Dialogue, Preference

TINY = "tiny"
PIECES = 1024
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@contextmanager
def tiny_towers(vision: str, llm: str, rows: Sequence[Dialogue | Preference]) -> Iterator[tuple[str, str]]:
    """`vision` and `llm`, where they are "tiny" as folders that live as long as the block.

    The tokenizer is made from the texts of `rows`.
    """
    with tempfile.TemporaryDirectory(prefix="vlmkit-tiny-") as name:
        if vision == TINY:
            vision = f"{name}/vision"
            _vision().save_pretrained(vision)
        if llm == TINY:
            llm = f"{name}/llm"
            tokenizer = _tokenizer(rows)
            tokenizer.save_pretrained(llm)
            _language(tokenizer).save_pretrained(llm)
        yield vision, llm


def _vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
    )


def _language(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )


def _texts(rows: Sequence[Any]) -> list[str]:
    turns = [turn for row in rows for turn in getattr(row, "turns", ())]
    return [text for turn in turns for text in (turn.user, turn.reply)] + [
        text for row in rows if isinstance(row, Preference) for text in (row.question, row.chosen, row.rejected)
    ]


def _tokenizer(rows: Sequence[Any]) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<system>", "<user>", "<assistant>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(_texts(rows), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer
