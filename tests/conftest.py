"""Fixtures: the installed command in a home of its own, and real photographs."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import inside
import pytest
from browser import find_browser
from hosted import Hosted
from serving import Served
from warm import Running, Server, Start, Warm, at_import

from vlmkit.cli.demo import collect

os.environ["VLMKIT_CONFIG"] = os.devnull  # for processes that have no environment of their own
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes of the tests are one for each core
hypothesis.settings.register_profile("any machine", deadline=None, derandomize=True)
hypothesis.settings.load_profile("any machine")

SCRIPT = Path(sys.executable).with_name("vlmkit")
# They need minutes; the recipes also need the source tree.
ON_REQUEST = ("recipes", "golden")
Vlmkit = Callable[..., subprocess.CompletedProcess[bytes]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what runs only when -m names it."""
    left_out = [item for item in items if any(map(item.get_closest_marker, _left_out(config)))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_report_header(config: pytest.Config) -> str | None:
    names = _left_out(config)
    return (
        f"left out: the tests marked {' and '.join(names)}; run them with -m '{' or '.join(names)}'" if names else None
    )


def _left_out(config: pytest.Config) -> list[str]:
    return [name for name in ON_REQUEST if name not in config.option.markexpr]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the photographs of scikit-image and scikit-learn."""
    folder = tmp_path_factory.mktemp("originals") / "photos"
    folder.mkdir()
    collect(folder)
    return folder


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small films, or a skip that says what is missing."""
    pytest.importorskip("av", reason="films need the extra video")
    from films import make_films

    folder = tmp_path_factory.mktemp("films")
    make_films(folder)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data sets beside the project, or a skip that says so."""
    folder = Path(os.environ.get("VLMKIT_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"real data sets are not at {folder} (set VLMKIT_SHARED)")
    return folder


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[Path, str], str]:
    """What headless Chromium makes of a page, with a script that runs at its end: the title that this leaves."""
    browser = find_browser()
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--dump-dom"]

    def title(page: Path, script: str) -> str:
        page.write_text(f"{page.read_text()}<script>addEventListener('load', () => {{{script}}});</script>")
        done = subprocess.run([browser, *options, page.as_uri()], capture_output=True, timeout=120, check=True)
        return re.search(r"<title>([^<]*)", done.stdout.decode())[1]

    return title


@pytest.fixture(scope="session")
def album(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures with awkward names and records, and `home` beside it with their index."""
    from album import make_album

    folder = tmp_path_factory.mktemp("page") / "album"
    make_album(photos, folder)
    return folder


@pytest.fixture(scope="session")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `trained`, a small vision-language model of random weights, and `packed`, what mini makes of it."""
    from tiny_llava import tiny_llava

    from vlmkit.recipes.mini.export_chat import export_chat

    folder = tmp_path_factory.mktemp("talking")
    tiny_llava(folder / "trained")
    export_chat(folder / "trained", folder / "packed", "float32")
    return folder


@pytest.fixture
def hosted() -> Iterator[Hosted]:
    """An endpoint on the loopback address."""
    with Hosted() as running:
        yield running


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment with data folders of its own and the installed command on the path."""
    return own_environment(tmp_path / "home")


def own_environment(home: Path) -> dict[str, str]:
    """An environment whose data folders are in `home`, without settings of the user, and without the size of a
    terminal, which pytest-xdist sets.
    """
    own = {name: str(home / name) for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    size = ("COLUMNS", "LINES")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("VLMKIT_") and k not in size}
    return kept | own | {"PATH": f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONWARNINGS": "default"}


@pytest.fixture(scope="session")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Processes with everything imported."""
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.stop()


@pytest.fixture(scope="session")
def start(forker: Server) -> Iterator[Start]:
    """Start a command in a folder: `start(folder, "train", …)`; it is killed at the end of the session."""
    with ExitStack() as stack:

        def begin(
            folder: Path, *arguments: object, environment: dict[str, str] | None = None, stdin: bytes = b""
        ) -> Running:
            running = Running(forker, [*map(str, arguments)], folder, environment or {}, stdin)
            stack.callback(running.process.kill)
            return running

        yield begin


@pytest.fixture(scope="session")
def served(photos: Path, photo_rows: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A running `vlmkit serve` over an index of the photographs, with mini."""
    folder = tmp_path_factory.mktemp("served")
    environment = own_environment(folder / "home")
    inside.run(["index"], folder, environment, photo_rows)
    service = Served(folder, environment)
    yield service
    service.end()


@pytest.fixture(scope="module")
def page(album: Path) -> Iterator[Served]:
    """A running service over the index of the album."""
    service = Served(album.parent, own_environment(album.parent / "home"))
    yield service
    service.end()


@pytest.fixture
def warm(start: Start, tmp_path: Path, environment: dict[str, str]) -> Warm:
    """As `vlmkit`, with all libraries imported before."""

    def run(*arguments: object, code: int = 0, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return start(tmp_path, *arguments, environment=environment, stdin=stdin).done(code)

    return run


def _run(
    command: Path, tmp_path: Path, environment: dict[str, str], arguments: tuple, code: int, options: dict
) -> subprocess.CompletedProcess[bytes]:
    words = [command, *map(str, arguments)]
    return _checked(subprocess.run(words, capture_output=True, cwd=tmp_path, env=environment, **options), code)


def _checked(done: subprocess.CompletedProcess[bytes], code: int) -> subprocess.CompletedProcess[bytes]:
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return done


@pytest.fixture
def vlmkit(tmp_path: Path, environment: dict[str, str]) -> Vlmkit:
    """Run a command in `tmp_path`, on bytes, in this process; `code` is the exit code that is expected."""
    imported = at_import(os.environ | {"PYTHONWARNINGS": "default"})

    def run(*arguments: object, code: int = 0, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        if at_import(environment) != imported:
            return _run(SCRIPT, tmp_path, environment, arguments, code, {"input": stdin})
        return _checked(inside.run([*map(str, arguments)], tmp_path, environment, stdin), code)

    return run


@pytest.fixture(scope="session")
def photo_rows(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What `vlmkit embed` makes of the photographs."""
    folder = tmp_path_factory.mktemp("rows")
    return inside.run(["embed", str(photos)], folder, own_environment(folder), b"").stdout


@pytest.fixture
def installed(tmp_path: Path, environment: dict[str, str]) -> Vlmkit:
    """As `vlmkit`, by the installed script in a process of its own, with options of subprocess.run."""

    def run(
        *arguments: object, code: int = 0, stdin: bytes = b"", **options: object
    ) -> subprocess.CompletedProcess[bytes]:
        return _run(SCRIPT, tmp_path, environment, arguments, code, {"input": stdin} | options)

    return run


@pytest.fixture
def shell(tmp_path: Path, environment: dict[str, str]) -> Callable[[str], subprocess.CompletedProcess[bytes]]:
    """Run a line of bash in `tmp_path`."""

    def run(line: str) -> subprocess.CompletedProcess[bytes]:
        words = ["bash", "-o", "pipefail", "-c", line]
        return subprocess.run(words, capture_output=True, cwd=tmp_path, env=environment)

    return run
