"""--chat: a conversation about pictures, in a terminal or on a pipe."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vlmkit.errors import Exit, Stopped, VlmkitError, catch
from vlmkit.generate.prepare import preprocessed
from vlmkit.generate.replies import or_not_sure
from vlmkit.io.files import user_folder
from vlmkit.io.http import HttpClient
from vlmkit.io.pictures import MARK
from vlmkit.io.records import dumps, name_of
from vlmkit.io.sources import PictureError, is_url
from vlmkit.io.terminal import Output
from vlmkit.models.types import Answer, ChatModel, Request, RequestError, Sampling, Turn

HISTORY_LINES = 1000
HELP = """/image PATH   show a picture, with the next question
/system TEXT  say how to answer, from now on
/save FILE    write the conversation as a record that train reads
/new          forget the conversation
/help         this list
/quit         leave; so does Ctrl-D. Ctrl-C ends an answer
"""


class Session:
    """A conversation. `say` shows the text of an answer as it comes, `note` shows messages."""

    def __init__(
        self,
        model: ChatModel,
        sampling: Sampling,
        system: str,
        say: Callable[[str], None],
        note: Callable[[str], None],
        allow_private: bool = False,
    ) -> None:
        self.model, self.sampling, self.system, self.say, self.note = model, sampling, system, say, note
        self.allow_private = allow_private
        self.unsure_below = 0.0  # answers of less confidence are not shown
        self.turns: list[Turn] = []
        self.names: list[str] = []  # of all pictures, in the order in which they were shown
        self._next: list[Any] = []
        self._saved: set[str] = set()  # files of this conversation

    def take(self, line: str) -> bool:
        """Handle one line, a command or a question; returns whether the conversation goes on."""
        command, _, rest = line.strip().partition(" ")
        if command == "/quit":
            return False
        if not command.startswith("/") or os.path.sep in command[1:]:
            if line.strip():
                self.ask(line.strip())
            return True
        work = {
            "/image": lambda name: self.show(_unquoted(name)),
            "/system": self.instruct,
            "/save": self.save,
            "/new": self.forget,
            "/help": lambda _: self.say(HELP),
        }.get(command)
        try:
            if work is None:
                raise VlmkitError(f"unknown command {command}", "/help lists what there is")
            work(rest.strip())
        except VlmkitError as error:
            self.note(str(error))
        return True

    def ask(self, question: str) -> None:
        """Answer one question; an interrupted answer is kept as far as it came."""
        request = Request(question, self._next, self.system, number=len(self.turns), earlier=tuple(self.turns))
        if self.model.needs_picture and not request.all_pictures():
            self.note(f"{name_of(self.model.identity)} answers questions about pictures: show one with /image PATH")
            return
        if len(self.turns) == 1 and not self.model.interleaved:
            self.note(f"{name_of(self.model.identity)} answers single questions: it does not read earlier ones")
        said: list[str] = []

        def say(piece: str) -> None:
            said.append(piece)
            if not self.unsure_below:  # else it is not known yet whether it will be shown
                self.say(piece)

        try:
            answer = self.model.stream(request, self.sampling, say)
        except Stopped as stopped:
            if stopped.code is not Exit.INTERRUPTED:
                raise
            catch()  # the next Ctrl-C interrupts again
            answer = Answer("".join(said), "stop", 0)
        if isinstance(answer, RequestError):
            self.note(f"{answer}: {answer.remedy}")
            return
        held = or_not_sure(answer.text, answer.confidence, self.unsure_below) if self.unsure_below else ""
        self.say(f"{held}\n")
        if answer.finish == "length":
            self.note(f"the answer was cut off: raise --max-tokens, which is {self.sampling.max_tokens}")
        self.turns.append(Turn(question, self._next, answer.text))
        self._next = []

    def show(self, name: str) -> None:
        """A picture for the next question. Raises VlmkitError."""
        if not name:
            raise VlmkitError("/image requires a path", "write /image PATH")
        path = name if is_url(name) else os.path.abspath(os.path.expanduser(name))
        try:
            with HttpClient(allow_private=self.allow_private) as web:
                picture, _ = preprocessed(path, self.model, web)
        except PictureError as error:
            raise VlmkitError(f"{name}: {error}", "name another picture") from None
        self._next = [*self._next, picture]
        self.names.append(path)

    def instruct(self, text: str) -> None:
        self.system = text

    def forget(self, _: str = "") -> None:
        self.turns, self.names, self._next = [], [], []

    def save(self, name: str) -> None:
        """The conversation in LLaVA's form, one record. Raises VlmkitError."""
        if not name or not self.turns:
            what = "there is nothing to save" if name else "/save requires a file"
            raise VlmkitError(what, "ask first, then /save FILE")
        path = os.path.abspath(os.path.expanduser(_unquoted(name)))
        if os.path.lexists(path) and path not in self._saved:
            raise VlmkitError(f"{name} already exists", "name another file")
        said = [{"from": "system", "value": self.system}] if self.system else []
        for turn in self.turns:
            placeholders = "" if MARK in turn.prompt else f"{MARK}\n" * len(turn.pictures)
            said += [{"from": "human", "value": placeholders + turn.prompt}, {"from": "gpt", "value": turn.answer}]
        images = {"image": self.names[0]} if len(self.names) == 1 else {"images": self.names} if self.names else {}
        record = {"id": Path(path).stem, **images, "conversations": said, "answer_model": self.model.identity}
        with Output(path) as out:
            out.write(dumps(record))
        self._saved.add(path)


def _unquoted(name: str) -> str:
    """`name` without shell quotes and backslashes, which terminals add to pasted paths."""
    if os.path.lexists(os.path.expanduser(name)):
        return name
    try:
        words = shlex.split(name)
    except ValueError:
        return name
    return words[0] if len(words) == 1 else name


def lines(history: Path) -> Iterator[str]:
    """The lines of standard input, on a terminal with line editing and the history of earlier conversations."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield from sys.stdin or ()
        return
    import readline

    history.parent.mkdir(parents=True, exist_ok=True)
    history.touch(mode=0o600)
    readline.read_history_file(history)
    readline.set_history_length(HISTORY_LINES)
    try:
        while True:
            try:
                yield input("> ")
            except EOFError:
                return
            except Stopped as stopped:
                if stopped.code is not Exit.INTERRUPTED:
                    raise
                catch()
                yield ""  # a new line, as shells give it
    finally:
        readline.write_history_file(history)


def history_file() -> Path:
    """Where the lines typed are kept: `$XDG_STATE_HOME/vlmkit/chat`."""
    return user_folder("state") / "chat"
