"""What a model thinks aloud, told apart from its answer, in the forms that chat templates and servers use."""

import re
from collections.abc import Callable

NAME = (
    r"(?:[a-z]+:)?(?:ant)?(?:think|thinking|thoughts?|thought_process|reason|reasoning|reasoning_content|analysis|"
    r"reflection|scratchpad|inner_monologue|chain_of_thought|cot)"
)
FORMS = [  # how a thought begins, how it ends
    (rf"^[ \t]*<{NAME}(?:\s[^<>]*)?>", rf"</{NAME}\s*>"),
    (r"^[ \t]*\[think(?:ing)?\]", r"\[/think(?:ing)?\]"),  # Magistral
    (r"◁think▷", r"◁/think▷"),  # Kimi-VL
    (r"<\|(?:begin_of_thought|start_thinking|think)\|>", r"<\|(?:end_of_thought|end_thinking|/think)\|>"),  # Command A
    (r"<unused94>(?:thought)?", r"<unused95>"),  # MedGemma
    (r"<\|channel>thought", r"<channel\|>"),  # Gemma 4
    (  # gpt-oss
        r"(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)\b[^<]*<\|message\|>",
        r"<\|end\|>|(?=(?:<\|start\|>assistant)?<\|channel\|>)",
    ),
    (r"\A\s*analysis(?=[A-Z])", r"assistantfinal"),  # the same without its special tokens
    (r"\A\s*here(?:'s| is) my thought process:", r"here(?:'s| is) my response:"),  # Granite
    (r'^[ \t]*<details type="reasoning"[^<>]*>', r"</details>"),  # Open WebUI
]
FLAGS = re.IGNORECASE | re.MULTILINE | re.DOTALL
BLOCK = re.compile("|".join(rf"(?:{begin}(.*?)(?:{end}|\Z))" for begin, end in FORMS), FLAGS)
# The end of a thought that the chat template has begun; not one that is only mentioned.
ORPHAN = re.compile(rf"(?<![`\"'“‘])(?:{'|'.join(end for _, end in FORMS[:6])})(?![`\"'”’])", FLAGS)
OPEN = re.compile(rf"(?:{'|'.join(begin.removeprefix('^') for begin, _ in FORMS[:6])})\s*\Z", FLAGS)
# What marks the answer behind a thought.
MARKS = re.compile(
    r"(?:<\|start\|>assistant)?<\|channel\|>final[^<]*<\|message\|>|<\|(?:return|end)\|>"
    r"|<\|(?:start|end)_response\|>|<\|(?:begin|end)_of_(?:solution|box)\|>",
    re.IGNORECASE,
)
WRAPPED = re.compile(
    r"\A(?:(\s*)<(answer|response|conclusion|final|final_answer)>(.*?)(?:</\2>(.*)|\Z)"
    r"|(.*?)<(answer|response|conclusion|final|final_answer)>(.*?)</\6>(.*))\Z",
    FLAGS,
)
# The end of a text that may become a mark.
PARTIAL = re.compile(
    r"(?:<\|start\|>\w*)?(?:<\|channel\|>[^<]*|<\|channel>\w*)?(?:<[^<>\n]{0,80}|\[/?[a-z]{0,8}|◁[^▷]{0,8})?\Z"
    r"|\A\s*a(?:n(?:a(?:l(?:y(?:s(?:is?)?)?)?)?)?)?\Z",
    re.IGNORECASE,
)


def split_reasoning(text: str, unopened: bool = True) -> tuple[str, str]:
    """(what the model thought, its answer), each stripped. A thought that is not closed goes on to the end.

    With `unopened` a mark that ends a thought counts without one that began it: the prompt, which is not known, may
    have begun it.
    """
    reasoning, answer = _split(text, unopened)
    return reasoning, answer.strip()


def _split(text: str, unopened: bool) -> tuple[str, str]:
    thoughts: list[str] = []

    def cut(match: re.Match[str]) -> str:
        thoughts.append(next(group for group in match.groups() if group is not None))
        return ""

    thought_end = max((match.end() for match in BLOCK.finditer(text)), default=0)
    before, answer = BLOCK.sub(cut, text[:thought_end]), text[thought_end:]
    if MARKS.sub("", answer).strip():
        thoughts.append(before)  # such as "Let me see."
    else:
        answer = before
    if unopened and (ends := list(ORPHAN.finditer(answer))):
        thoughts.append(ORPHAN.sub("\n", answer[: ends[-1].start()]))
        answer = answer[ends[-1].end() :]
    answer = MARKS.sub("", answer)
    wrapped = WRAPPED.match(answer)
    if wrapped and (thoughts or wrapped[2]):
        before, _, inside, behind = (group or "" for group in wrapped.groups()[0 if wrapped[2] else 4 :][:4])
        thoughts.append(before)
        answer = inside + behind
    return "\n".join(filter(None, map(str.strip, thoughts))), answer


def is_mark(token: str) -> bool:
    """Whether a special token begins or ends a thought."""
    return token == "<|channel|>" or bool(BLOCK.search(token) or ORPHAN.search(token))


def thinks_already(prompt: str) -> str:
    """The mark at the end of `prompt` with which a chat template begins a thought, or an empty text."""
    found = OPEN.search(prompt)
    return found[0].strip() if found else ""


class AnswerStream:
    """Passes to `say` the answer in a text that comes in pieces, without what is thought before it.

    `lost` is whether something was passed on that turned out to be a thought, which nothing had begun.
    """

    def __init__(self, say: Callable[[str], None], text: str = "", unopened: bool = True) -> None:
        self._say, self.text, self._said, self.lost = say, text, "", False
        self._unopened = unopened

    def put(self, piece: str) -> None:
        self.text += piece
        self._show(PARTIAL.sub("", self.text, count=1))

    def end(self) -> None:
        self._show(self.text)

    def _show(self, text: str) -> None:
        answer = _split(text, self._unopened)[1].lstrip()
        if "\n" in answer[len(answer.rstrip()) :]:  # line breaks may be the last of it
            answer = answer.rstrip()
        if not answer.startswith(self._said):
            self.lost = True
            self._say("\n")
            self._said = ""
        if new := answer[len(self._said) :]:
            self._say(new)
            self._said = answer
