"""Words of captions: the Penn Treebank tokenizer that COCO captions are scored with (Java), and one without Java.

Both take a caption as one line, whatever line breaks Unicode has: the official wrapper replaces the line feed alone,
so that a caption with a carriage return shifts all later ones to the wrong picture, without an error.
"""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vlmkit.errors import VlmkitError
from vlmkit.metrics.stats import check_variant

TOKENIZERS = ("auto", "ptb", "py")
PTB_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
LINE_BREAKS = "[\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029]"
# What coco-caption drops. It lists brackets, too, but as "-LRB-", which never matches: they survive as "-lrb-".
DROPPED = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}


def java_files() -> Path:
    """The folder of pycocoevalcap, whose Java programs are run. Raises VlmkitError without it or without Java."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise VlmkitError("pycocoevalcap is not installed", "pip install 'vlmkit[eval]', or use the tokenizer py")
    if shutil.which("java") is None:
        raise VlmkitError("java is not installed", "install a Java runtime, or use the tokenizer py")
    return Path(next(iter(spec.submodule_search_locations)))


def java_missing() -> str | None:
    """Why Java programs cannot be run; None if they can."""
    try:
        java_files()
    except VlmkitError as error:
        return error.what
    return None


def default_tokenizer() -> str:
    """`ptb` where it can be run, else `py`."""
    return "py" if java_missing() else "ptb"


def tokenized(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], how: str | None
) -> tuple[list[str], list[list[str]]]:
    """Both with their tokens separated by single spaces; in one call, as starting Java takes a second."""
    if how is None:
        return list(hypotheses), [list(group) for group in references]
    check_variant(how, TOKENIZERS)
    texts = [*hypotheses, *(text for group in references for text in group)]
    how = default_tokenizer() if how == "auto" else how
    words = iter(_ptb(texts) if how == "ptb" else map(_py, texts))
    return [next(words) for _ in hypotheses], [[next(words) for _ in group] for group in references]


def _ptb(captions: Sequence[str]) -> list[str]:
    command = ["java", "-cp", str(java_files() / PTB_JAR), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    # A last line of its own: the program drops empty lines at the end.
    lines = "".join(re.sub(LINE_BREAKS, " ", caption) + "\n" for caption in [*captions, "end"])
    done = subprocess.run(command, input=lines.encode(errors="replace"), capture_output=True)
    found = done.stdout.decode(errors="replace").split("\n")[:-1]
    if done.returncode or len(found) != len(captions) + 1:
        raise VlmkitError("the PTB tokenizer of pycocoevalcap failed", "use the tokenizer py")
    return [_join(line.rstrip().split(" ")) for line in found[:-1]]


def _join(words: Sequence[str]) -> str:
    return " ".join(word for word in words if word not in DROPPED)


_TOKEN = r"""(?x)
    (?:https?://|www\.)\S+
    | (?:[^\W\d_]\.){2,}                                   # u.s., a.m.
    | (?:mr|mrs|ms|dr|st|jr|sr|vs|prof|ave|blvd|rd|inc|co|corp|ft|mt|no)\.(?=\s+\S)
    | \d+(?:[.,:/]\d+)+                                    # 5.00, 1,000, 5:30, 1/2
    | '(?:\d0s|em|tis|twas|til|n)\b
    | (?:\w|\.(?=\w{2}))+?(?=n't\b|'(?:s|m|d|re|ve|ll)\b)  # what a contraction is attached to
    | n't\b | '(?:s|m|d|re|ve|ll)\b
    | \w+(?:[-.&/]\w+)*(?:'\w+)*(?:-\w+)*                   # hyphens stay
    | \.{2,} | -{2,} | [^\w\s]
    """
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPLIT = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me"}
_STRAIGHT = str.maketrans("‘’“”", "''\"\"")


def _py(caption: str) -> str:
    """Close to PTB for captions, not equal: scores of the two must not be compared."""
    words = re.findall(_TOKEN, caption.lower().translate(_STRAIGHT))
    words = [_SPLIT.get(word, _BRACKETS.get(word, word)) for word in words]
    return _join([word for word in words if word != '"' and word.strip(".-")])
