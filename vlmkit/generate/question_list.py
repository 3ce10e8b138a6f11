"""--questions FILE: several questions about the same pictures, which are opened once."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.generate.questions import ChatSample
from vlmkit.io.records import loads


def read_questions(path: str) -> list[str]:
    """The lines of a file that are not empty, of JSONL their `question`. Raises VlmkitError."""
    remedy = 'write one question a line, or records with "question"'
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise VlmkitError(f"--questions {path}: {error.strerror}", "name a file of questions") from None
    except UnicodeDecodeError:
        raise VlmkitError(f"--questions {path} is not UTF-8", remedy) from None
    if lines and lines[0].startswith("{"):
        try:
            lines = [loads(line.encode())["question"] for line in lines]
        except (ValueError, LookupError, TypeError):
            raise VlmkitError(f"--questions {path} holds a line that is no record with a question", remedy) from None
    if not lines or not all(isinstance(line, str) and line.strip() for line in lines):
        raise VlmkitError(f"--questions {path} holds {'an empty' if lines else 'no'} question", remedy)
    return lines


class Once:
    """Calls `work` once for each picture that several questions are about; of others it keeps nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: OrderedDict[int, tuple[Any, Future[Any]]] = OrderedDict()  # with the picture, which keeps its id

    def __call__(self, work: Callable[[Any], Any], sample: ChatSample) -> Callable[[Any], Any]:
        """`work`, which is done once for each picture of a sample that is shared."""
        return (lambda picture: self._call(work, picture, 2 * len(sample.pictures))) if sample.is_shared else work

    def _call(self, work: Callable[[Any], Any], picture: Any, kept: int) -> Any:
        with self._lock:
            is_first = id(picture) not in self._done
            _, future = self._done.setdefault(id(picture), (picture, Future()))
            while len(self._done) > kept:
                self._done.popitem(last=False)
        if is_first:
            try:
                future.set_result(work(picture))
            except BaseException as error:  # raised below, and for the other questions
                future.set_exception(error)
        return future.result()
