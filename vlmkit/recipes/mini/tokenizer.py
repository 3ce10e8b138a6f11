"""A small language model with fresh weights, and a tokenizer made from the texts it will learn."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<unk>", "</s>", "<user>", "<reply>"]
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<reply>' + message['content'] + '</s>' if message['role'] == 'assistant' else '<user>' + message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
)
TOKENIZER_SETTINGS = {
    "unk_token": "<unk>",
    "eos_token": "</s>",
    "pad_token": "</s>",
    "chat_template": TEMPLATE,
}
CONTEXT = 512  # tokens
HEAD = 32  # numbers of each head of attention
ROWS = 64  # the embedding table is a multiple of it, the image token included


def language_model(folder: Path, texts: Iterable[str], pieces: int, width: int, layers: int) -> Path:
    """Write a configuration without weights and a tokenizer to `folder`: a Llama that training begins from nothing.

    Texts are taken in lower case, without accents, numbers by digit, words in byte-pair pieces, at most `pieces`.
    """
    tokenizer = _tokenizer(texts, pieces)
    llama(folder, tokenizer, -(-(len(tokenizer) + 1) // ROWS) * ROWS, width, layers)
    return folder


def llama(folder: Path, tokenizer: PreTrainedTokenizerFast, rows: int, width: int, layers: int) -> None:
    """Write a configuration with `rows` for the vocabulary of `tokenizer`, and that, to `folder`."""
    tokenizer.save_pretrained(folder)
    LlamaConfig(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        num_key_value_heads=width // HEAD,
        tie_word_embeddings=True,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)


def _tokenizer(texts: Iterable[str], pieces: int) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    plain = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    made.normalizer = normalizers.Sequence([*plain, normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(), digits])
    made.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces, min_frequency=3, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, **TOKENIZER_SETTINGS)
