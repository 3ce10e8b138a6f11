"""Tokens without PyTorch: the cleaning that open_clip gives texts, and its tokenizer in the form of `tokenizers`."""

import html
import string
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def cleaned(text: str, how: str) -> str:
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


def bytes_pairs(simple: Any, length: int) -> "tokenizers.Tokenizer":
    """open_clip's SimpleTokenizer (Radford et al. 2021): byte pairs, marks around, zeros up to `length`.

    A text that spells out one of the marks is cut otherwise; nothing else differs.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    marks = [simple.decoder[number] for number in (simple.sot_token_id, simple.eot_token_id)]
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)
    made = Tokenizer(models.BPE(dict(simple.encoder), merges, end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"(?i){WORDS}"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    pairs = [(mark, simple.encoder[mark]) for mark in marks]
    made.post_processor = processors.TemplateProcessing(single=f"{marks[0]} $A {marks[1]}", special_tokens=pairs)
    made.enable_truncation(length)
    made.enable_padding(length=length, pad_id=0, pad_token=simple.decoder[0])
    return made
