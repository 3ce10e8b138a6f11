"""Tokenizers without PyTorch: open_clip's cleaning of texts, and tokenizers of the package `tokenizers`."""

import html
import string
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
WORD = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def clean_text(text: str, how: str) -> str:
    """`text` as the model's own tokenizer cleans it: none, case, or open_clip's whitespace, lower, canonicalize."""
    if how == "none":
        return text
    if how == "case":
        return text.lower()
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else nothing to mend, and no import
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if how == "canonicalize":
        text = text.replace("_", " ").translate(WITHOUT_PUNCTUATION)
    text = " ".join(text.split())
    return text if how == "whitespace" else text.lower()


def of_transformers(tokenizer: Any, length: int) -> "tokenizers.Tokenizer | None":
    """The fast tokenizer inside one of transformers, cutting and padding to `length` tokens; None if it is slow."""
    from tokenizers import Tokenizer

    inside = getattr(tokenizer, "backend_tokenizer", None)
    if inside is None or tokenizer.pad_token_id is None:
        return None
    made = Tokenizer.from_str(inside.to_str())
    made.enable_truncation(length, direction=tokenizer.truncation_side)
    made.enable_padding(
        length=length,
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id,
        pad_type_id=tokenizer.pad_token_type_id,
        pad_token=tokenizer.pad_token,
    )
    return made


def of_open_clip(simple: Any, length: int) -> "tokenizers.Tokenizer":
    """open_clip's SimpleTokenizer (Radford et al. 2021): byte pairs between start and end tokens, zeros up to `length`.

    Only a text that spells out one of the two gives other tokens.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    start, end = (simple.decoder[number] for number in (simple.sot_token_id, simple.eot_token_id))
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)
    made = Tokenizer(models.BPE(dict(simple.encoder), merges, end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"(?i){WORD}"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    special = [(token, simple.encoder[token]) for token in (start, end)]
    made.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=special)
    made.enable_truncation(length)
    made.enable_padding(length=length, pad_id=0, pad_token=simple.decoder[0])
    return made
