"""The text tower's vocabulary: which of its pieces the bundled model keeps."""

from collections.abc import Iterable

from english_words import get_english_words_set

from vlmkit.train.contrastive.packaged_towers import SPECIAL


def choose_pieces(vocabulary: dict[str, int], needed: Iterable[str], size: int) -> list[str]:
    """The special pieces, every Latin letter and digit, the pieces in `needed`, then others, up to `size`.

    First the short beginnings and the ends, of which rare words are made, then what stands in a dictionary, forms of
    it, and the rest, mostly proper names, each by falling frequency: BERT numbers its pieces so. Other scripts go.
    """
    wanted = {piece for word in needed for piece in (word, f"##{word}") if piece in vocabulary}
    order = sorted(vocabulary, key=vocabulary.__getitem__)
    usable = [piece for piece in order if piece.isascii() and not piece.startswith("[")]
    kept = set(SPECIAL) | {piece for piece in usable if len(piece.removeprefix("##")) == 1} | wanted
    english = get_english_words_set(["web2"], lower=False)  # names have a capital there
    parts = [piece for piece in usable if piece.startswith("##") or len(piece) <= 3]
    words = [piece for piece in usable if piece in english]
    forms = [piece for piece in usable if _is_form(piece, english)]
    for piece in (piece for piece in parts + words + forms + usable if not piece.isdigit()):
        if len(kept) >= size:
            break
        kept.add(piece)
    return SPECIAL + [piece for piece in order if piece in kept and piece not in SPECIAL]


def _is_form(word: str, dictionary: set[str]) -> bool:
    """Whether `word` is an entry of `dictionary` with a common ending."""
    stems = {word.removesuffix(ending) for ending in ("s", "es", "d", "ed", "ing", "er", "ers")} - {word}
    return any(stem in dictionary or f"{stem}e" in dictionary for stem in stems)
