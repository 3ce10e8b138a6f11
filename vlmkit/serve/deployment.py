"""--print: files with which others run the service, made of the options that it would be started with."""

import shlex
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

import orjson

from vlmkit import __version__

GRACE = 10  # seconds beyond the time of a request
MEMORY = "4G"


@dataclass(frozen=True, slots=True)
class Deployment:
    """`arguments` are those of the command but for its address and its index."""

    host: str
    port: int
    index: Path
    arguments: list[str]
    timeout: float
    uses_gpu: bool

    def text(self, kind: str) -> str:
        """The file for systemd, dockerfile, compose or kubernetes."""
        index = str(self.index.absolute())
        program = str(Path(sys.executable).with_name("vlmkit"))
        here = ["serve", "--host", self.host, "--port", str(self.port), "--index", index, *self.arguments]
        inside = ["vlmkit", "serve", "--host", "0.0.0.0", "--port", str(self.port)]
        known = [] if kind == "dockerfile" else ["--allow-host", "vlmkit"]  # the name of the service in its network
        return Template(files("vlmkit.serve").joinpath("deploy", kind).read_text()).substitute(
            version=__version__,
            port=self.port,
            index=_of_systemd(index) if kind == "systemd" else _of_yaml(index),
            command=" ".join(map(_of_systemd, [program, *here])),
            entrypoint=orjson.dumps([*inside, *self.arguments]).decode(),
            arguments=_of_yaml([*known, *self.arguments]),
            grace=int(self.timeout) + GRACE,
            memory=MEMORY,
            private_devices="no" if self.uses_gpu else "yes",
        )


def _of_yaml(value: str | list[str]) -> str:
    """JSON, which is YAML; compose and Kubernetes replace names behind a single dollar sign."""
    return orjson.dumps(value).decode().replace("$", "$$")


def _of_systemd(word: str) -> str:
    """A word of a command line as systemd reads it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != shlex.quote(escaped) else escaped
