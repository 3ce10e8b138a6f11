"""What a tokenizer does not know of texts, and what it cuts off."""

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers


def unknown_words(tokenizer: "tokenizers.Tokenizer", texts: list[str]) -> list[str]:
    """The parts of `texts` that `tokenizer` turns into its unknown token, adjoining ones together; no punctuation."""
    unknown = getattr(tokenizer.model, "unk_token", None)
    found: list[str] = []
    for text, encoding in zip(texts, tokenizer.encode_batch(texts), strict=True):
        end = -1
        for token, (start, stop) in zip(encoding.tokens, encoding.offsets, strict=True):
            if token != unknown or start == stop or not any(map(has_meaning, text[start:stop])):
                continue
            if start == end:
                found[-1] += text[start:stop]
            else:
                found.append(text[start:stop])
            end = stop
    return found


def has_meaning(character: str) -> bool:
    """Whether it is a letter, a number or a symbol such as an emoji, not punctuation, space or a mark."""
    return unicodedata.category(character)[0] in "LNS"


def count_tokens(tokenizer: "tokenizers.Tokenizer", texts: list[str]) -> tuple[int, int]:
    """The tokens of `texts` without padding, and how many texts `tokenizer` cuts."""
    encodings = tokenizer.encode_batch(texts)
    return sum(sum(one.attention_mask) for one in encodings), sum(bool(one.overflowing) for one in encodings)


def count_cut(tokenizer: "tokenizers.Tokenizer", texts: list[str]) -> int:
    """How many of `texts` have more tokens than `tokenizer`, which cuts them, keeps."""
    most = context_of(tokenizer)
    long = [text for text in texts if most and len(text.encode()) > most // 2]  # others cannot have as many
    return count_tokens(tokenizer, long)[1] if long else 0


def context_of(tokenizer: "tokenizers.Tokenizer") -> int:
    """How many tokens `tokenizer` keeps, with those that it adds; 0 for all."""
    return (tokenizer.truncation or {}).get("max_length", 0)
