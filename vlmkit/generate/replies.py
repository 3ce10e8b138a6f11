"""What records tell of the reply that they got."""

from vlmkit.io.records import Record
from vlmkit.models.types import Reply

REFERENCES = {"answer": "answers", "caption": "captions"}  # where a data set's own goes when a model gives its one
NOT_SURE = "not sure"


def or_not_sure(text: str, confidence: float | None, unsure_below: float) -> str:
    """`text`, or that the model is not sure of it."""
    return text if confidence is None or confidence >= unsure_below else NOT_SURE


def is_cut(record: Record) -> bool:
    """Whether the reply in a record was cut off at --max-tokens."""
    return record.get("finish") == "length"


def with_reply(record: Record, made: Record, reply: Reply, max_tokens: int, stats: bool) -> Record:
    """`record` with what was `made` of a reply, how it ended, and what the model said beside it.

    A field that the data set had under the name of what was made is a reference.
    """
    answer = reply.answer
    if not record.keys().isdisjoint(("answer_model", "caption_model")):  # these were about an earlier reply
        earlier = ("confidence", "reasoning", "max_tokens")
        record = {key: value for key, value in record.items() if key not in earlier}
    for name, several in REFERENCES.items():
        own = record.get(name)
        if name in made and own not in (None, "", []) and f"{name}_model" not in record and not record.get(several):
            record = record | {several: own if isinstance(own, list) else [own]}
    limit = max_tokens if answer.finish == "length" else None
    beside = {"max_tokens": limit, "confidence": answer.confidence, "reasoning": answer.reasoning or None}
    beside = {key: value for key, value in beside.items() if value is not None}
    numbers = {"ms": round(reply.ms, 1), "tokens": answer.tokens} if stats else {}
    return record | made | {"finish": answer.finish} | beside | reply.fields | numbers
