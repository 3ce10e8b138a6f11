"""Off line means off line: no command reports to anybody, or leaves files but in folders of its own."""

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import SCRIPT

pytestmark = pytest.mark.slow

# What would switch reporting off by itself, or send it elsewhere.
NOT_THEIRS = re.compile("VLMKIT_|XDG_|HF_|ORT_|DO_NOT_TRACK|CI$|GITHUB_|TF_BUILD")
OUTSIDE = re.compile(r"(?:connect|sendto|sendmsg|sendmmsg)\(.*AF_INET|openat\([^)]*\"/etc/(?:resolv\.conf|hosts)\"")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_nothing_is_reported(home: Path, photos: Path, tmp_path: Path) -> None:
    photo, trace = photos / "coffee.png", tmp_path / "trace"
    traced = ["strace", "-f", "-qq", "-A", "-e", "trace=network,openat", "-o", trace] if shutil.which("strace") else []
    if not traced:
        print("strace is not installed: connections are not looked at, files are")
    kept = {name: value for name, value in os.environ.items() if not NOT_THEIRS.match(name)}
    environment = kept | {"HOME": str(home)}

    def run(*arguments: object, stdin: bytes = b"") -> bytes:
        words = [*map(str, traced), str(SCRIPT), *map(str, arguments)]
        done = subprocess.run(words, input=stdin, capture_output=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    run("index", stdin=run("embed", photo))
    assert run("search", "a cup of coffee", "--json")
    if find_spec("rapidocr"):
        assert run("ask", photos / "page.png", "--ocr").startswith(b"Region-based segmentation")
    assert run("caption", photo) and run("ask", photo, "what is in the cup?")
    assert run("classify", photo, "--labels", "cup,cat")
    written = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert (
        written
        and {path for path in written if not path.startswith((".cache/vlmkit/", ".local/share/vlmkit/"))} == set()
    )
    if traced:
        assert [line for line in trace.read_text(errors="replace").splitlines() if OUTSIDE.search(line)] == []


def test_who_wants_it_can_have_it(home: Path) -> None:
    code = "import os, vlmkit; print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "ORT_DISABLE_TELEMETRY": "0"}
    python = SCRIPT.with_name("python")
    done = subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]
