"""Multiple choice: which option an answer names, by its letter or its text, and never guessed."""

import re
from collections.abc import Mapping

_ALONE = re.compile(r"(?:(?:option|choice|answer)\b[\s:]*)?[(\[{*_\s]*([A-Za-z])[)\]}*_.:,;!\s]*", re.IGNORECASE)
_STATED = re.compile(  # "the answer is (B)", "Answer: B", "\boxed{B}"; a small letter only at the end
    r"(?:(?i:\b(?:answer|choice|option)\s*(?:is|would be|should be|:|=)\s*:?|\\boxed|\bfinal answer)\s*)"
    r"(?i:(?:the\s+)?(?:option|choice|letter)\s+)?[(\[{*_\s]*([A-Z](?![\w'])|[a-z](?=[\s.)\]}*_]*$))"
)
_ARTICLE = r"(?!\s+(?!(?:is|was|because|since|as|and|or)\b)[a-z])"  # not the A of "A dog", the I of "I see"
_CAPITAL = re.compile(rf"(?<![A-Za-z0-9_'])(?:[B-HJ-Z]|[AI]{_ARTICLE})(?![A-Za-z0-9_'])")
_SMALL_FIRST = re.compile(r"[(\[]?([a-z])[)\].:]\s")
_NEGATION = re.compile(r"\b(?:not|no|none|neither|nor|cannot|wrong|incorrect)\b|n't\b", re.IGNORECASE)


def option_named(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that `answer` names; None where it names none, several, or says which it is not.

    `options` are texts by capital letters; a text is "" where it is not known. In this order: the answer is a letter or
    an option's text; it states one, as in "the answer is B"; one letter stands in it, as in "B. a cat"; one option's
    text does. What a model thought before `</think>` does not count. The rules are near to VLMEvalKit's `can_infer`
    (Duan and others, 2024), which draws an option at random where this gives None.
    """
    said = answer.rpartition("</think>")[2].strip()
    alone = _ALONE.fullmatch(said)
    if alone and alone[1].upper() in options:
        return alone[1].upper()
    texts = {letter: words for letter, text in options.items() if (words := _words(text))}
    if same := {letter for letter, words in texts.items() if words == _words(said)}:
        return _only(same)
    held = _held(_words(said), texts)
    stated = {letter.upper() for letter in _STATED.findall(said)} & options.keys()
    if stated and (stated != {"A"} or not held or "A" in held):  # "Answer: A dog" states no letter
        return _only(stated)
    rest = said
    for letter in held:
        rest = re.sub(r"\W+".join(map(re.escape, texts[letter].split())), " option ", rest, flags=re.IGNORECASE)
    starts = len(held) == 1 and re.match(rf"{re.escape(texts[_only(held) or ''])}\s*[,.;:!\n-]", said.lower())
    if _NEGATION.search(rest) and not starts:
        return None
    letters = set(_CAPITAL.findall(rest)) & options.keys()
    small = _SMALL_FIRST.match(rest)
    if not letters and small:
        letters = {small[1].upper()} & options.keys()
    return _only(letters or held)


def _only(letters: set[str]) -> str | None:
    return next(iter(letters)) if len(letters) == 1 else None


def _words(text: str) -> str:
    return " ".join(re.findall(r"[-+]?\d+(?:[.,]\d+)*|[^\W_]+(?:'[^\W_]+)*", text.lower()))


def _held(said: str, texts: Mapping[str, str]) -> set[str]:
    """The letters of the options whose words stand in `said`, without those that are a part of another one's."""
    held = {letter for letter, words in texts.items() if f" {words} " in f" {said} "}
    return {one for one in held if not any(f" {texts[one]} " in f" {texts[o]} " for o in held - {one})}
