"""The same work for many items by Ray Data: actors on the nodes of a cluster, each of which opens a model once.

Only names of items and what is told of them go through Ray; the work itself reads and writes files of a folder that all
nodes share. Workers show in the folder `beats` that they are at work, since Ray does not tell of actors that cannot be
started again: their items are then done by the others.
"""

import contextlib
import logging
import math
import os
import pickle
import re
import signal
import socket
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, NamedTuple

from vlmkit import __version__
from vlmkit.errors import CODES, VlmkitError, check_installed, reason_of

BEAT = 2.0  # seconds
START = 600.0  # seconds in which the first worker must begin: clusters that grow take minutes
SILENCE = 90.0  # seconds without a beat and a result, after which what is left goes to others
LOOK = 0.5  # seconds between two looks at the beats
SHARE = 0.75  # of a node's CPUs: actors that take all of them hang the data set (issue 44687 of Ray)
ANSWER = 10.0  # seconds for a connection
STORE_BYTES = 100_000_000  # of the object store on this machine, where names lie
Work = Callable[[str], Any]


class Context(NamedTuple):
    """Where and how the command was called: the version, the folder, and the settings in the environment."""

    version: str
    folder: str
    settings: dict[str, str]

    @classmethod
    def here(cls) -> "Context":
        kept = {name: value for name, value in os.environ.items() if name.startswith("VLMKIT_") and "TOKEN" not in name}
        return cls(__version__, os.getcwd(), kept)

    def enter(self) -> None:
        """Take it over in this process. Raises VlmkitError."""
        if self.version != __version__:
            what = f"vlmkit is {__version__} on {socket.gethostname()}, and {self.version} where the command was called"
            raise VlmkitError(what, "install one version on all nodes")
        os.environ.update(self.settings)
        try:
            os.chdir(self.folder)
        except OSError as error:
            what = f"{self.folder} cannot be entered on {socket.gethostname()} ({error.strerror})"
            raise VlmkitError(what, "call vlmkit in a folder that all nodes share") from None


class Worker:
    """One actor. A batch is one item; an error of the work is a result, as those of an actor would end all."""

    def __init__(self, context: Context, pickled: bytes, beats: str) -> None:
        self.context, self.pickled, self.beats = context, pickled, beats
        self.work: Work | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        (item,) = map(str, batch["item"])
        result, told = None, None
        with _beating(self.beats):
            try:
                if self.work is None:
                    self.context.enter()
                    self.work = pickle.loads(self.pickled)
                result = self.work(item)
            except VlmkitError as error:
                told = error.what, error.remedy
            except Exception as error:  # told where the command was called
                told = f"{type(error).__name__} {reason_of(error)}", "this is a defect of vlmkit, report it"
        return {"result": [pickle.dumps((item, told, result))]}


@contextmanager
def _beating(folder: str) -> Iterator[None]:
    """While the block is at work, a file in `folder` is written to again and again."""
    over = Event()
    file = Path(folder, f"{socket.gethostname()}-{os.getpid()}")

    def beat() -> None:
        while True:
            with contextlib.suppress(OSError):  # the work itself tells of a folder that is not there
                file.write_text(str(time.time()))
            if over.wait(BEAT):
                return

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def map_by_ray(work: Work, items: list[str], address: str, beats: Path) -> Iterator[Any]:
    """`work(item)` for each of `items`, as they are done, by the Ray cluster at `address`: local, auto or HOST:PORT.

    Raises VlmkitError, also one that `work` raises, and where nobody works any more.
    """
    check_installed("--ray", "vlmkit[ray]", "ray")
    _check_address(address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # or the thread of a round that was given up would connect again
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters is told in results
    from ray import cloudpickle

    pickled = cloudpickle.dumps(work)
    left = dict.fromkeys(items)
    while left:
        before = len(left)
        with _nothing_printed(), _connected(address), contextlib.closing(_round(pickled, list(left), beats)) as results:
            for item, told, result in results:
                if told is not None:
                    raise VlmkitError(*told)
                left.pop(item, None)
                yield result
        if len(left) == before:
            what = f"no worker of the Ray cluster began within {START:.0f} s, or showed itself for {SILENCE:.0f} s"
            raise VlmkitError(what, "look at `ray status` for nodes and free CPUs, and run it again")


def _check_address(address: str) -> None:
    """Raise VlmkitError where no cluster can be there, which Ray takes two minutes to notice."""
    if address in ("local", "auto"):
        return
    found = re.fullmatch(r"([^/:\s]+):(\d{1,5})", address)
    if not found:
        raise VlmkitError(
            f"--ray {address} is neither local nor auto nor HOST:PORT", "write for example --ray head:6379"
        )
    try:
        socket.create_connection((found[1], int(found[2])), timeout=ANSWER).close()
    except (OSError, OverflowError) as error:
        what = f"no Ray cluster answers at {address} ({reason_of(error)})"
        raise VlmkitError(what, "start one with ray start --head --port PORT, or pass --ray local") from None


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """A connection to the cluster, or one of this machine alone until the block ends."""
    import ray

    handlers = {number: signal.getsignal(number) for number in CODES}
    own: dict[str, Any] = {}
    if address == "local":
        own = {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        with _silent():
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except Exception as error:  # a start that fails raises nearly every kind
        what = f"no Ray cluster could be started or reached by --ray {address} ({reason_of(error)})"
        raise VlmkitError(what, "start one with ray start --head, or pass --ray local") from None
    finally:
        for number, handler in handlers.items():  # ray takes SIGTERM for itself
            signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _nothing_printed() -> Iterator[None]:
    """Ray prints its own logs, as when a node dies, to standard output, where data belongs alone."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextmanager
def _silent() -> Iterator[None]:
    """Ray's libraries write notes of their own to standard error where they start."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class Places(NamedTuple):
    """What each actor takes of a node, and how many there are."""

    cpus: float
    gpus: float
    actors: int

    @classmethod
    def on(cls, nodes: list[dict[str, Any]]) -> "Places":
        """One actor a GPU, if there are any; else as many as have the CPUs of the smallest node, but a part."""
        found = [node["Resources"] for node in nodes if node["Alive"]]
        if with_gpus := [one for one in found if one.get("GPU", 0) >= 1]:
            return cls(_part(min(one.get("CPU", 1) / one["GPU"] for one in with_gpus)), 1, _total(with_gpus, "GPU"))
        sizes = [one["CPU"] for one in found if one.get("CPU", 0) > 0] or [1.0]
        cpus = _part(min(sizes))
        return cls(cpus, 0, sum(max(1, int(size * SHARE // cpus)) for size in sizes))


def _part(cpus: float) -> float:
    """A part of `cpus`, whole above one, as Ray wants it."""
    return float(math.floor(cpus * SHARE)) if cpus * SHARE >= 1 else cpus / 2


def _total(nodes: list[dict[str, float]], kind: str) -> int:
    return int(sum(node[kind] for node in nodes))


def _round(pickled: bytes, items: list[str], beats: Path) -> Generator[Any, None, None]:
    """The results of `items` as they come, until all are there or nobody works any more."""
    results: Queue[Any] = Queue()
    Thread(target=_run, args=(pickled, items, str(beats), results.put), daemon=True).start()
    seen, last, patience = _marks(beats), time.monotonic(), START
    while True:
        try:
            found = results.get(timeout=LOOK)
        except Empty:
            if (marks := _marks(beats)) != seen:
                seen, last, patience = marks, time.monotonic(), SILENCE
            elif time.monotonic() - last > patience:
                return
            continue
        if found is None:
            return
        if isinstance(found, Exception):
            raise VlmkitError(f"the Ray cluster gave up ({reason_of(found)})", "check its nodes, and run it again")
        last, patience = time.monotonic(), SILENCE
        yield pickle.loads(found)


def _run(pickled: bytes, items: list[str], beats: str, put: Callable[[Any], None]) -> None:
    """Give each result to `put`, at the end None, or what went wrong."""
    try:
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        DataContext.get_current().enable_progress_bars = False
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        places = Places.on(ray.nodes())
        actors = min(places.actors, len(items))
        done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Worker,
            fn_constructor_args=(Context.here(), pickled, beats),
            batch_size=1,
            compute=ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
            num_cpus=places.cpus,
            num_gpus=places.gpus or None,
        )
        for row in done.iter_rows():
            put(row["result"])
        put(None)
    except Exception as error:  # whatever Ray raises
        put(error)


def _marks(folder: Path) -> list[str]:
    """What changes with each beat."""
    marks = []
    for file in sorted(folder.glob("*")):
        with contextlib.suppress(OSError):  # written to at this moment
            marks.append(f"{file.name} {file.read_text()}")
    return marks
