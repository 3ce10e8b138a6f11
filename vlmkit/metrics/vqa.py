r"""VQA accuracy and its normalisation, as GT-Vision-Lab/VQA (vqaEval.py, commit a013f004) computes them.

Variants:

- `official`: answers are normalised only where the reference answers are not all identical.
- `always`: always normalised, as most other harnesses do.
- `textvqa`: MMF's processor for TextVQA, which first drops commas and question marks and sets off `'s`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from vlmkit.metrics.stats import MetricError, check_variant

VARIANTS = ("official", "always", "textvqa")
MATCHES_FOR_FULL_SCORE = 3

ARTICLES = {"a", "an", "the"}
NUMBER_WORDS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
NUMBER_WORDS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# The official table, its slips included: words are looked up in lower case, so the keys with a capital never match.
CONTRACTIONS: dict[str, str] = dict(
    re.findall(
        r"(\S+)=(\S+)",
        """
aint=ain't arent=aren't cant=can't couldve=could've couldnt=couldn't couldn'tve=couldn't've couldnt've=couldn't've
didnt=didn't doesnt=doesn't dont=don't hadnt=hadn't hadnt've=hadn't've hadn'tve=hadn't've hasnt=hasn't
havent=haven't hed=he'd hed've=he'd've he'dve=he'd've hes=he's howd=how'd howll=how'll hows=how's Id've=I'd've
I'dve=I'd've Im=I'm Ive=I've isnt=isn't itd=it'd itd've=it'd've it'dve=it'd've itll=it'll let's=let's maam=ma'am
mightnt=mightn't mightnt've=mightn't've mightn'tve=mightn't've mightve=might've mustnt=mustn't mustve=must've
neednt=needn't notve=not've oclock=o'clock oughtnt=oughtn't ow's'at='ow's'at 'ows'at='ow's'at 'ow'sat='ow's'at
shant=shan't shed've=she'd've she'dve=she'd've she's=she's shouldve=should've shouldnt=shouldn't
shouldnt've=shouldn't've shouldn'tve=shouldn't've somebody'd=somebodyd somebodyd've=somebody'd've
somebody'dve=somebody'd've somebodyll=somebody'll somebodys=somebody's someoned=someone'd someoned've=someone'd've
someone'dve=someone'd've someonell=someone'll someones=someone's somethingd=something'd somethingd've=something'd've
something'dve=something'd've somethingll=something'll thats=that's thered=there'd thered've=there'd've
there'dve=there'd've therere=there're theres=there's theyd=they'd theyd've=they'd've they'dve=they'd've
theyll=they'll theyre=they're theyve=they've twas='twas wasnt=wasn't wed've=we'd've we'dve=we'd've weve=we've
werent=weren't whatll=what'll whatre=what're whats=what's whatve=what've whens=when's whered=where'd wheres=where's
whereve=where've whod=who'd whod've=who'd've who'dve=who'd've wholl=who'll whos=who's whove=who've whyll=why'll
whyre=why're whys=why's wont=won't wouldve=would've wouldnt=wouldn't wouldnt've=wouldn't've wouldn'tve=wouldn't've
yall=y'all yall'll=y'all'll y'allll=y'all'll yall'd've=y'all'd've y'alld've=y'all'd've y'all'dve=y'all'd've
youd=you'd youd've=you'd've you'dve=you'd've youll=you'll youre=you're youve=you've
""",
    )
)
_ANY_PUNCTUATION = re.compile("[" + re.escape(PUNCTUATION) + "]")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# Sic: `(?!<=\d)` was meant to be `(?<!\d)`, so that "3." loses its full stop.
_FULL_STOP = re.compile(r"(?!<=\d)(\.)(?!\d)")
_MOST_FULL_STOPS = 32  # sic: re.UNICODE, passed where `count` belongs


def vqa_normalize(answer: str, variant: str = "official") -> str:
    """`answer` without punctuation, articles and number words, in lower case, contractions mended."""
    check_variant(variant, VARIANTS)
    return _normalize(answer, variant == "textvqa")


def plain(answer: str) -> str:
    """`answer` on one line, stripped: all that the official code does where every reference is the same."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)
def _normalize(answer: str, textvqa: bool) -> str:
    if textvqa:
        answer = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return _digits_and_articles(_punctuation(plain(answer)))


def _punctuation(text: str) -> str:
    out = text
    if _ANY_PUNCTUATION.search(text):
        in_number = _COMMA_IN_NUMBER.search(text) is not None
        for mark in PUNCTUATION:
            if mark in text:
                drop = in_number or mark + " " in text or " " + mark in text
                out = out.replace(mark, "" if drop else " ")
    return _FULL_STOP.sub("", out, count=_MOST_FULL_STOPS) if "." in out else out


def _digits_and_articles(text: str) -> str:
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def compared(prediction: str, answers: Sequence[str], variant: str = "official") -> tuple[str, list[str]]:
    """The strings that are compared for equality: the prediction's and the references'."""
    check_variant(variant, VARIANTS)
    references = [plain(answer) for answer in answers]
    if variant == "official" and len(set(references)) <= 1:
        return plain(prediction), references
    textvqa = variant == "textvqa"
    return _normalize(prediction, textvqa), [_normalize(answer, textvqa) for answer in answers]


def vqa_accuracy(prediction: str, answers: Sequence[str], variant: str = "official") -> float:
    """Soft accuracy, 0 to 1: the mean over the references of min(1, matches among the other references / 3).

    With ten references 1, 2, 3, 4 matches give 0.3, 0.6, 0.9, 1. Raises MetricError with fewer than two references,
    for which the formula has no meaning.
    """
    if len(answers) < 2:
        raise MetricError("VQA accuracy needs two references or more", "use exact accuracy for one reference")
    return soft_accuracy(*compared(prediction, answers, variant))


def soft_accuracy(prediction: str, references: Sequence[str]) -> float:
    """The formula alone, on strings that are `compared`: of n references, m of them matches, m see m - 1 others."""
    n, m = len(references), Counter(references)[prediction]
    left_out = m * min(1.0, (m - 1) / MATCHES_FOR_FULL_SCORE) if m else 0.0
    return (left_out + (n - m) * min(1.0, m / MATCHES_FOR_FULL_SCORE)) / n
