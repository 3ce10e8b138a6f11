"""--ray: shards by a Ray cluster of two nodes on this machine, as by the plain command; nodes and workers that die."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from faults import Faulty, serving
from helpers import SOURCE_TREE, tar
from PIL import Image

from vlmkit.io.ray_executor import Places

NODES = Path(__file__).with_name("ray_nodes.py")
SHARDS = 4
SILENCE = 20.0  # seconds
SECONDS = 240  # of a command on a busy machine


def node(**resources: float) -> dict:
    return {"Alive": True, "Resources": {"CPU": resources.get("cpu", 0.0), "GPU": resources.get("gpu", 0.0)}}


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ([node(cpu=1), node(cpu=1)], (0.5, 0, 2)),
        ([node(cpu=2)], (1, 0, 1)),
        ([node(cpu=16), node(cpu=64), node()], (12, 0, 5)),
        ([node(cpu=16, gpu=4), node(cpu=96, gpu=8), node(cpu=4)], (3, 1, 12)),
    ],
)
def test_a_part_of_each_node_stays_free(nodes: list[dict], wanted: tuple[float, float, int]) -> None:
    found = Places.on(nodes)
    assert found == wanted
    cpus = sum(one["Resources"]["CPU"] for one in nodes)
    assert found.cpus * found.actors < cpus


def test_what_no_cluster_is(vlmkit, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'vlmkit[ray]'")
    tar(tmp_path / "x.tar", {"a.jpg": b"no"})
    words = ("embed", "x.tar", "--out-dir", "out", "--ray")
    assert b"is neither local nor auto nor HOST:PORT" in vlmkit(*words, "head", code=2).stderr
    assert b"no Ray cluster answers at 127.0.0.1:1 (" in vlmkit(*words, "127.0.0.1:1", code=2).stderr
    assert b"--ray requires --out-dir" in vlmkit("embed", "x.tar", "--ray", "local", code=2).stderr


class Cluster:
    """Two nodes; `end_node` removes the second one."""

    def __init__(self) -> None:
        command = [sys.executable, NODES]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=SOURCE_TREE
        )
        self.address = self.process.stdout.readline().decode().strip()

    def end_node(self) -> None:
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"removed\n"

    def end(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="needs Ray: pip install 'vlmkit[ray]'")
    made = Cluster()
    if not made.address:  # Ray gives a node 30 seconds to begin, which a busy machine exceeds
        made.end()
        made = Cluster()
    if not made.address:
        pytest.skip("Ray started no cluster in two tries: this machine is too busy")
    yield made
    made.end()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Faulty]:
    """Shards of three pictures each, which come in some seconds while `slow` is set."""
    rng = np.random.default_rng(0)
    with serving() as running:
        for shard in range(SHARDS):
            members = {}
            for number in range(3):
                data = io.BytesIO()
                Image.fromarray(rng.integers(256, size=(160, 160, 3), dtype=np.uint8)).save(data, "PNG")
                members[f"{shard}{number}.png"] = data.getvalue()
                members[f"{shard}{number}.txt"] = f"noise {number}".encode()
            running.files[f"/x-{shard}.tar"] = tar(tmp_path / "shard.tar", members).read_bytes()
        yield running


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("x-*.jsonl")}


class Begun(NamedTuple):
    run: subprocess.Popen
    folder: Path
    plain: dict[str, bytes]

    def workers(self) -> list[int]:
        """The processes of the workers."""
        return [int(path.name.rpartition("-")[2]) for path in self.folder.glob("_unfinished/beats/*")]

    def check_unfinished(self) -> None:
        assert self.run.poll() is None and len(outputs(self.folder)) < SHARDS, "the work was unfinished"

    def check_end(self) -> None:
        """All is done, as by the plain command."""
        out, said = (text.decode() for text in self.run.communicate(timeout=SECONDS))
        assert self.run.returncode == 0 and out == "", said
        assert outputs(self.folder) == self.plain and len(self.plain) == SHARDS
        assert f"all is done: {SHARDS} shards, {3 * SHARDS} written, 0 failed" in said
        assert all(line.startswith("vlmkit: ") for line in said.splitlines()), said


@pytest.fixture
def begun(vlmkit, environment: dict[str, str], tmp_path: Path, cluster: Cluster, server: Faulty) -> Iterator[Begun]:
    """The command by the cluster, with an output and unfinished work, and the outputs of the plain command.

    Workers are given up after a shorter silence than users have.
    """
    words = ["embed", "--allow-private", f"{server.base}/x-{{0..{SHARDS - 1}}}.tar", "--out-dir"]
    vlmkit(*words, "plain")
    server.slow = 1.0
    patience = f"import vlmkit.io.ray_executor as r; r.SILENCE = {SILENCE}; from vlmkit.__main__ import run; run()"
    command = [sys.executable, "-c", patience, *words, "out", "--ray", cluster.address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes) as run:
        try:
            until(lambda: run.poll() is not None or outputs(tmp_path / "out"))
            yield Begun(run, tmp_path / "out", outputs(tmp_path / "plain"))
        finally:
            run.kill()


def until(happened: Callable[[], object]) -> None:
    begun = time.monotonic()
    while not happened():
        assert time.monotonic() - begun < SECONDS
        time.sleep(0.05)


@pytest.mark.slow
def test_as_the_plain_command_by_two_nodes_and_with_a_killed_worker(begun: Begun) -> None:
    workers = begun.workers()
    assert len(workers) == 2
    begun.check_unfinished()
    os.kill(workers[0], signal.SIGKILL)
    begun.check_unfinished()
    begun.check_end()


@pytest.mark.slow
def test_a_worker_that_hangs(begun: Begun) -> None:
    """Ray waits for it without end; its shard goes to another."""
    workers = begun.workers()
    begun.check_unfinished()
    os.kill(workers[0], signal.SIGSTOP)
    begun.check_end()


@pytest.mark.slow
def test_a_node_that_goes_away(begun: Begun, cluster: Cluster) -> None:
    begun.check_unfinished()
    cluster.end_node()
    begun.check_unfinished()
    begun.check_end()
