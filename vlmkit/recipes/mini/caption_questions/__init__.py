"""Questions and answers made from captions by rule: colour, number, object, action, yes and no.

What several captions of a picture say and none contradicts is asked. Text alone shall not give answers away: of each
yes-no question as many pictures have yes as no, and no other answer has more than half of its question's pictures.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vlmkit.io.records import Record
from vlmkit.recipes.mini.caption_questions.mentions import tokens
from vlmkit.recipes.mini.caption_questions.rules import RULES
from vlmkit.recipes.mini.caption_questions.scene import Scene
from vlmkit.train.data.mixture import share


class Question(NamedTuple):
    """One candidate, before balancing."""

    number: int  # which record
    text: str
    answers: tuple[str, ...]
    category: str


def questions(records: Iterable[Record], seed: int = 0) -> Iterator[Record]:
    """{id, image, question, answers, category} for the records with captions, in their order.

    A pure function of records and seed.
    """
    rows = [row for row in records if row.get("captions")]
    candidates = [q for number, row in enumerate(rows) for q in _asked(number, row, seed)]
    asked: dict[int, list[Question]] = defaultdict(list)
    for question in _balanced(candidates, rows, seed):
        asked[question.number].append(question)
    for number, row in enumerate(rows):
        for i, question in enumerate(sorted(asked[number], key=lambda q: (q.category, q.text)), 1):
            fields = {"question": question.text, "answers": list(question.answers), "category": question.category}
            yield {"id": f"{row['id']}-q{i}", "image": row["image"], **fields}


def _balanced(candidates: list[Question], rows: list[Record], seed: int) -> Iterator[Question]:
    by_text: dict[str, dict[str, list[Question]]] = defaultdict(lambda: defaultdict(list))
    for question in candidates:
        by_text[question.text][question.answers[0]].append(question)
    for text, by_answer in by_text.items():
        for some in by_answer.values():
            some.sort(key=lambda q: share(f"{seed} {rows[q.number]['id']} {text}"))
        if by_answer.keys() <= {"yes", "no"}:
            least = min(len(by_answer["yes"]), len(by_answer["no"]))
            limits = dict.fromkeys(by_answer, least)
        else:
            total = sum(map(len, by_answer.values()))
            limits = {answer: total - len(some) for answer, some in by_answer.items()}
        for answer, some in by_answer.items():
            yield from some[: limits[answer]]


def _asked(number: int, row: Record, seed: int) -> Iterator[Question]:
    scene = Scene([tokens(caption) for caption in row["captions"]])

    def pick(kind: str, *wordings: str) -> str:
        """One of the wordings, always the same one for this picture and kind."""
        return wordings[int(share(f"{seed} {row['id']} {kind}") * len(wordings))]

    for category, rule in RULES:
        for text, answers in rule(scene, pick):
            yield Question(number, text, answers, category)
