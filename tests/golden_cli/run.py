"""Run the command lines of cases.toml and write down, or compare, what each of them does.

    python run.py OUT                   one text file a case, in OUT
    python run.py --write               the same, into expected/ beside this file
    python run.py --check expected      differences to an earlier OUT; the exit code is 1 if there are any
    --exact                             for two trees on one machine: with all digits, embeddings and sums of files

The vlmkit that is run is the one that this Python finds: PYTHONPATH=TREE runs that of another tree. --work names the
folder that the inputs and outputs stand in; --exact needs the same one each time.
"""

import argparse
import difflib
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import local_web
from normal import Normal, alike

HERE = Path(__file__).parent
EXPECTED = HERE / "expected"
WORK = Path(tempfile.gettempdir()) / "vlmkit-golden"
GROUPS: dict[str, dict[str, str | list[str]]] = tomllib.loads((HERE / "cases.toml").read_text(encoding="utf-8"))
NAMES = [f"{group}-{name}" for group, cases in GROUPS.items() for name in cases]
PASSING = (".sqlite-shm", ".sqlite-wal", ".ses")  # of SQLite and onnxruntime
SECONDS = 900  # that a line may take
KEPT = ("LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "COVERAGE_PROCESS_START")


def run(outs: dict[Path, bool], work: Path, only: list[str] | None = None, jobs: int = 1) -> list[str]:
    """Run the cases, write a file for each into the folders `outs`, exact or not; the names of those that were run.

    A case may need what those before it in its group made; so of a group all up to the last one wanted are run.
    """
    wanted = [name for name in NAMES if not only or any(part in name for part in only)]
    for out in outs:
        out.mkdir(parents=True, exist_ok=True)
    port = local_web.start()
    with _alone(work), serving(work), ThreadPoolExecutor(jobs) as pool:
        template = work / "inputs/urls.template"
        (work / "inputs/urls.jsonl").write_text(template.read_text().replace("PORT", str(port)))
        template.unlink()

        def group(name: str) -> None:
            cases = list(GROUPS[name].items())
            while cases and f"{name}-{cases[-1][0]}" not in wanted:
                cases.pop()
            for case, *texts in _outcomes(name, cases, work, list(outs.values()), port) if cases else ():
                for out, text in zip(outs, texts, strict=True):
                    if f"{name}-{case}" in wanted:
                        (out / f"{name}-{case}.txt").write_text(text, encoding="utf-8")

        list(pool.map(group, GROUPS))
    return wanted


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """An empty folder `work`, as soon as no other run is there."""
    work.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{work}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(work, ignore_errors=True)
        (work / "bin").mkdir(parents=True)
        yield


@contextmanager
def serving(work: Path) -> Iterator[None]:
    """Have a server of forks.py run, which has built the inputs."""
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hub"), "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, str(HERE / "forks.py"), f"{folder}/socket", str(work)]
        with subprocess.Popen(line, env=os.environ | own, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as server:
            try:
                assert server.stdout is not None
                if server.stdout.readline() != b"ready\n":
                    raise SystemExit("the server of the commands did not start")
                yield
            finally:
                server.terminate()


def _outcomes(
    group: str, cases: list[tuple[str, str | list[str]]], work: Path, exact: list[bool], port: int
) -> Iterator[tuple[str, ...]]:
    """The name of each case of a group, which has a folder of its own, and the outcome in each of the forms `exact`."""
    folder = work / group
    shutil.copytree(work / "inputs", folder)
    (folder / "home/tmp").mkdir(parents=True)
    spec = importlib.util.find_spec("vlmkit")
    assert spec and spec.origin, "vlmkit is not installed"
    places = {str(folder): "WORK", str(Path(spec.origin).parent): "VLMKIT", sys.prefix: "VENV"}
    forms = [Normal(places, one) for one in exact]
    environment = _environment(folder, work, port)
    before = _files(folder)
    for name, lines in cases:
        told = []
        for line in [lines] if isinstance(lines, str) else lines:
            done = _done(line, folder, environment)
            after = _files(folder)
            written = sorted(path for path in after if after[path] != before.get(path))
            removed = sorted(before.keys() - after.keys())
            told.append([_outcome(line, done, folder, written, removed, form) for form in forms])
            before = after
        yield name, *map("\n".join, zip(*told, strict=True))


def _done(line: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS,
    )


def _outcome(
    line: str,
    done: subprocess.CompletedProcess[bytes],
    folder: Path,
    written: list[str],
    removed: list[str],
    form: Normal,
) -> str:
    """What a line did: its exit code, its output, and the files that it wrote and removed."""
    parts = [f"$ {line}", f"exit code {done.returncode}"]
    for name, data in (("output", done.stdout), ("error", done.stderr)):
        if data:
            parts.append(f"=== standard {name}\n{form.stream(data)}")
    parts += [f"=== wrote {form.text(path)}\n{form.file(folder / path)}" for path in written]
    parts += [f"=== removed {form.text(path)}" for path in removed]
    return "".join(f"{part.rstrip()}\n" for part in parts)


def _environment(folder: Path, work: Path, port: int) -> dict[str, str]:
    home = folder / "home"
    own = {f"XDG_{name.upper()}_HOME": str(home / name) for name in ("data", "cache", "config", "state")}
    own |= {"HOME": str(home), "TMPDIR": str(home / "tmp"), "HF_HOME": str(work / "hub"), "HF_HUB_OFFLINE": "1"}
    own |= {"NO_COLOR": "1", "COLUMNS": "200", "TERM": "xterm", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    own |= {
        "PATH": os.pathsep.join([f"{work}/bin", str(Path(sys.executable).parent), os.environ["PATH"]]),
        "WEB": f"http://127.0.0.1:{port}",
    }
    own |= {"PYTHONPYCACHEPREFIX": str(work / "compiled")}
    return {name: os.environ[name] for name in KEPT if name in os.environ} | own


def _files(folder: Path) -> dict[str, tuple[int, int, int]]:
    """All files below `folder` but caches and what SQLite has open, with what tells that one was written."""
    found = {}
    for root, folders, names in os.walk(folder):
        if "cache" in folders and os.path.basename(root) == "home":
            folders.remove("cache")
        for path in (os.path.join(root, name) for name in names if not name.endswith(PASSING)):
            about = os.stat(path)
            found[os.path.relpath(path, folder)] = (about.st_size, about.st_mtime_ns, about.st_ino)
    return found


def difference(name: str, expected: Path, out: Path, exact: bool = False) -> str:
    """A unified diff of one case, empty where it is as expected. Numbers may differ by rounding unless `exact`."""
    files = [folder / f"{name}.txt" for folder in (expected, out)]
    theirs, ours = ([] if not file.exists() else file.read_text(encoding="utf-8").splitlines() for file in files)
    if len(ours) == len(theirs) and not exact:
        ours = [b if alike(a, b) else a for a, b in zip(ours, theirs, strict=True)]
    return "\n".join(difflib.unified_diff(theirs, ours, f"expected/{name}", f"now/{name}", lineterm=""))


def main() -> int:
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=about, epilog=more, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--check", type=Path, metavar="EXPECTED")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--only", action="append", metavar="PART", help="cases whose name has this part")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--jobs", type=int, default=2)
    told = parser.parse_args()
    if not (told.out or told.check or told.write):
        parser.error("give OUT, --check EXPECTED or --write")
    with tempfile.TemporaryDirectory() as temporary:
        out = EXPECTED if told.write else told.out or Path(temporary)
        if told.write and not told.only:
            shutil.rmtree(out, ignore_errors=True)
        names = run({out.absolute(): told.exact}, told.work.absolute(), told.only, told.jobs)
        if told.check is None:
            return 0
        found = [text for name in names if (text := difference(name, told.check, out, told.exact))]
        print("\n".join([*found, f"{len(found)} of {len(names)} cases differ"]))
        return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
