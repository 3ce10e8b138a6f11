"""serve --print: what those for whom the files are say of them."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow  # kubernetes-validate and check-jsonschema take seconds to start

OPTIONS = [
    "-i",
    "./my photos.index",
    "--port",
    9000,
    "--timeout",
    60,
    "--cors",
    "https://a.example",
    "-m",
    "x=mini",
    "-q",
]
FLAGS = ["--cors", "https://a.example", "--timeout", "60", "--quiet", "--model", "x=mini"]
BIN = Path(sys.executable).parent


@pytest.fixture
def printed(vlmkit, tmp_path: Path):
    def write(kind: str, name: str) -> Path:
        (tmp_path / name).write_bytes(vlmkit("serve", *OPTIONS, "--print", kind).stdout)
        return tmp_path / name

    return write


def check(*words: object) -> None:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr.strip(), done.stdout + done.stderr


def test_systemd(printed, tmp_path: Path) -> None:
    unit = printed("systemd", "vlmkit.service")
    (line,) = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    program, *words = shlex.split(line.partition("=")[2])
    address = ["serve", "--host", "127.0.0.1", "--port", "9000", "--index", str(tmp_path / "my photos.index")]
    assert (program, words) == (str(BIN / "vlmkit"), address + FLAGS)
    assert "DynamicUser=yes" in unit.read_text() and "ProtectSystem=strict" in unit.read_text()
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    check("systemd-analyze", "verify", unit)


def test_dockerfile(printed) -> None:
    file = printed("dockerfile", "Dockerfile")
    check(BIN / "hadolint", file)
    *_, user, _, port = [
        line for line in file.read_text().splitlines() if line.startswith(("USER", "WORKDIR", "EXPOSE"))
    ]
    assert (user, port) == ("USER 10001:10001", "EXPOSE 9000")


def test_compose(printed, tmp_path: Path) -> None:
    file = printed("compose", "compose.yaml")
    check(BIN / "check-jsonschema", "--quiet", "--builtin-schema", "vendor.compose-spec", file)
    service = yaml.safe_load(file.read_text())["services"]["vlmkit"]
    assert service["command"] == ["--allow-host", "vlmkit", *FLAGS] and service["ports"] == ["127.0.0.1:9000:9000"]
    assert service["read_only"] and service["volumes"][0]["read_only"] and service["user"].startswith("10001")
    assert service["volumes"][0]["source"] == str(tmp_path / "my photos.index")


def test_kubernetes(printed) -> None:
    file = printed("kubernetes", "vlmkit.yaml")
    done = subprocess.run([BIN / "kubernetes-validate", "--strict", file], capture_output=True, text=True)
    assert done.returncode == 0 and (done.stdout + done.stderr).count("passed") == 2, done.stdout + done.stderr
    deployment, service = yaml.safe_load_all(file.read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]
    assert all(
        container[probe]["httpGet"]["path"] == "/health"
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    )
    assert container["volumeMounts"][0]["readOnly"] and container["resources"]["limits"]["memory"] == "4Gi"
    assert container["args"] == ["--allow-host", "vlmkit", *FLAGS]
    assert service["spec"]["ports"][0]["port"] == 9000
