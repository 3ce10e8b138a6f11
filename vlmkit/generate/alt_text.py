"""A caption as alt text: what a model answers, as one sentence that does not begin with "a picture of"."""

import re
import unicodedata

KIND = r"(?:image|picture|photo|photograph|snapshot)"
OPENING = re.compile(
    rf"(?:(?:an?|the|this) {KIND} of|(?:the|this) {KIND} (?:is of|shows|depicts|features)|in (?:the|this) {KIND},?"
    r"|(?:there|here) (?:is|are))\s+",
    re.IGNORECASE,
)
LOOSE = re.compile(r"\s+([.,;:!?]|'s\b)")  # punctuation set apart, as in tokenised training captions
ENDS = ".!?…‼⁇⁈⁉。！？｡．؟۔܀።፧։।॥၊။។៕᠃᠉"  # Unicode's sentence terminals of living scripts
ENDED = re.compile(rf"[{ENDS}][\"'“”‘’«»‹›)\]」』】》）]*$")
# The full stop of the scripts that have one of their own, by the first word of a letter's Unicode name.
FULL_STOPS = {
    **dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO"), "。"),
    **dict.fromkeys(("DEVANAGARI", "BENGALI", "GURMUKHI", "ORIYA"), "।"),
    **{"ARMENIAN": "։", "ETHIOPIC": "።", "KHMER": "។", "MYANMAR": "။", "THAI": "", "LAO": "", "TIBETAN": ""},
}


def alt_text(text: str, *, sentences: int | None = 1, cut: bool = False, guided: bool = False) -> str:
    """At most `sentences` of `text`, with a capital and a full stop. If it was `cut` short, without its last words if
    a complete sentence stands before them, and otherwise with no full stop. What opens it is left out unless it was
    `guided` there.
    """
    text = LOOSE.sub(r"\1", " ".join(text.split()))
    parts = split_sentences(text)
    cut = cut and not ENDED.search(text)
    if cut and len(parts) > 1:
        parts.pop()
        cut = False
    text = "".join(parts[:sentences]).rstrip(" ,;:-")
    if not guided:
        text = OPENING.sub("", text, count=1) if OPENING.match(text) else text
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if cut or ENDED.search(text) else _full_stop(text))


def split_sentences(text: str) -> list[str]:
    """The sentences of a text on one line, each with the space behind it; abbreviations do not end one.

    In a text with capitals no sentence begins with a small letter or a digit, whatever the abbreviation before it.
    """
    from sentencex import segment

    parts: list[str] = []
    capitals = text[:1].isupper()
    for part in segment("ru" if _script(text) == "CYRILLIC" else "en", text):
        inside = parts and parts[-1].endswith(". ") and (part[0].islower() or part[0].isdecimal())
        if capitals and inside:
            parts[-1] += part
        else:
            parts.append(part)
    return parts


def _full_stop(text: str) -> str:
    return FULL_STOPS.get(_script(text), ".")


def _script(text: str) -> str:
    """The script of the last letter in `text`, as Unicode names it; Latin where there is none."""
    letter = next((c for c in reversed(text) if c.isalpha()), "a")
    return re.split("[ -]", unicodedata.name(letter, "LATIN"))[0]
