"""The messages of a chat request as a conversation with its pictures."""

from typing import Any

from vlmkit.generate.questions import ChatSample
from vlmkit.io.pictures import MARK
from vlmkit.serve.errors import ApiError
from vlmkit.serve.parts import Part, check_amount, content_parts

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def read_messages(messages: list[dict[str, Any]]) -> ChatSample:
    """The conversation, whose `pictures` are Parts. Messages of one role that follow each other are one.

    Raises ApiError.
    """
    system: list[str] = []
    turns: list[tuple[str, list[str]]] = []
    all_parts: list[Part] = []
    for i, message in enumerate(messages):
        param = f"messages.{i}"
        role = ROLES.get(message["role"])
        if role is None:
            what = f"messages of the role {message['role'][:100]} are not supported here"
            raise ApiError(400, what, code="unsupported", param=f"{param}.role")
        parts = content_parts(message.get("content"), f"{param}.content")
        shown = [part for part in parts if part.is_picture]
        if shown and role != "user":
            raise ApiError(400, "only the user shows pictures", code="invalid_value", param=f"{param}.content")
        all_parts += parts
        lines = [MARK if part.is_picture else part.value.replace(MARK, " ") for part in parts]
        if role == "system":
            system += lines
        elif turns and turns[-1][0] == role:
            turns[-1][1].extend(lines)
        else:
            turns.append((role, lines))
    texts = ["\n".join(lines) for _, lines in turns]
    if not turns or turns[0][0] != "user" or turns[-1][0] != "user" or not texts[-1].strip():
        what = "a conversation begins and ends with a message of the user, and the last one says something"
        raise ApiError(400, what, code="invalid_value", param="messages")
    check_amount(all_parts)
    pictures = [part for part in all_parts if part.is_picture]
    earlier = list(zip(texts[:-1:2], texts[1::2], strict=True))
    return ChatSample({}, pictures, prompt=texts[-1], earlier=earlier, system="\n".join(system))
