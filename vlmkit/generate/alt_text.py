"""A caption as alt text: what a model answers, as one sentence that does not begin with "a picture of"."""

import re

KIND = r"(?:image|picture|photo|photograph|snapshot)"
OPENING = re.compile(
    rf"(?:(?:an?|the|this) {KIND} of|(?:the|this) {KIND} (?:is of|shows|depicts|features)|in (?:the|this) {KIND},?"
    r"|(?:there|here) (?:is|are))\s+",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"(?<=[a-z0-9)\"']{2}[.!?])\s+")  # not behind "St." and "Dr."
LOOSE = re.compile(r"\s+([.,;:!?]|'s\b)")  # punctuation set apart, as in tokenised training captions


def alt_text(text: str, *, sentences: int | None = 1, cut: bool = False, guided: bool = False) -> str:
    """At most `sentences` of `text`, with a capital and a full stop. If it was `cut` short, without its last words if
    a complete sentence stands before them, and otherwise with no full stop. What opens it is left out unless it was
    `guided` there.
    """
    text = LOOSE.sub(r"\1", " ".join(text.split()))
    if not guided:
        text = OPENING.sub("", text, count=1) if OPENING.match(text) else text
    parts = SENTENCE_END.split(text)
    cut = cut and not parts[-1].endswith((".", "!", "?"))
    if cut and len(parts) > 1:
        parts.pop()
        cut = False
    text = " ".join(parts[:sentences]).rstrip(" ,;:-")
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if cut or text.endswith((".", "!", "?")) else ".")
