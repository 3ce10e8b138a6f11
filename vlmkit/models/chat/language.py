"""Questions that are not in English, told by the words that a model and its English vocabulary lack.

Only what is certain: words of letters that the model has no token for; or at least two words that are in neither
vocabulary, a third of the question, in which no word of English grammar stands. Where one does, it takes three and more
than half. Spanish question marks count as words. So a name or a rare word does not make a question foreign.

Vocabularies of pieces of words hold short words of other languages by chance: the commonest of these count as lacking.
"""

import unicodedata
from typing import TYPE_CHECKING

from vlmkit.models.texts import unknown_words

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ENGLISH = frozenset(
    {"a", "the", "this", "that", "these", "is", "are", "does", "did", "with", "and", "there", "any", "of", "on", "or"}
    | {"what", "which", "who", "where", "when", "why", "how", "many"}
)
FOREIGN = frozenset(
    {"ist", "das", "der", "und", "auf", "dem", "den", "wo", "wie", "zu", "ein", "eine", "bild", "welche"}
    | {"de", "el", "es", "la", "los", "que", "en", "un", "una", "hay", "est", "le", "les", "il", "et"}
    | {
        "di",
        "che",
        "cosa",
        "cos",
        "o",
        "os",
        "um",
        "uma",
        "na",
        "dit",
        "een",
        "er",
        "het",
        "wat",
        "co",
        "bu",
        "hur",
        "det",
    }
)


def foreign_words(text: str, own: "Tokenizer", english: "Tokenizer") -> list[str]:
    """The words by which `text` is not English, each once, in order; none where it may be English.

    `own` are the tokens of the model, `english` those of a vocabulary of whole English words.
    """
    words = _words(text)
    without_token = [word for word in words if unknown_words(own, [word])]
    if 2 * len("".join(without_token)) >= len("".join(words)) > 0:
        return list(dict.fromkeys(without_token))
    lacking = [word for word in words if word in FOREIGN or not any(_is_one_token(word, t) for t in (own, english))]
    count = len(lacking)
    if ENGLISH.isdisjoint(words) or "¿" in words:
        foreign = count >= 2 and (3 * count >= len(words) or "¿" in words)
    else:
        foreign = count >= 3 and 2 * count > len(words)
    return list(dict.fromkeys(lacking)) if foreign else []


def _words(text: str) -> list[str]:
    """Runs of letters and their marks, in lower case, and Spanish question marks."""
    kept = (c if unicodedata.category(c)[0] in "LM" else f" {c} " if c == "¿" else " " for c in text.lower())
    return "".join(kept).split()


def _is_one_token(word: str, tokens: "Tokenizer") -> bool:
    """Whether it is a token as it stands, with all its accents."""
    return tokens.encode(word, add_special_tokens=False).tokens in ([word], [f"▁{word}"])
