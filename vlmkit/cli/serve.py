"""The command serve."""

import os
import secrets
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from vlmkit.cli.defaults import named_models
from vlmkit.cli.options import (
    MODEL,
    RUNNING,
    AllowPrivate,
    Common,
    Device,
    EmbedPrecision,
    IndexName,
    Precision,
    RunsOn,
    Workers,
    cores,
    option,
    valid_utf8,
)
from vlmkit.errors import Exit, VlmkitError, check_installed
from vlmkit.io.limits import MAX_PIXELS_VARIABLE
from vlmkit.io.terminal import Output, warn

if TYPE_CHECKING:
    from vlmkit.serve.settings import Settings

Several = list[str] | None
NEEDED = ("starlette", "uvicorn", "prometheus_client", "jsonschema", "python_multipart")
MODEL_HELP = "A model that requests may name, by NAME if given; may be repeated. mini by default."
HOST_HELP = "The address to listen at; another than that of this machine alone needs a token."
TOKEN_HELP = "Answer only who sends it as Authorization: Bearer; for an open address one is made and printed."
ALLOW_HELP = "Answer to this value of the header Host, too, such as a name behind a proxy; may be repeated."
PRINT_HELP = "Write the file with which that runs the service with these options, and end."
MCP_HELP = "Answer one assistant by the Model Context Protocol on standard input and output, in place of HTTP."
CORS_HELP = "Let web pages of this origin send requests, such as https://example.org; may be repeated."
Models = Annotated[
    Several,
    option("-m, --model [NAME=]MODEL", MODEL_HELP, show_default=False, group=MODEL, callback=named_models),
]


class Printed(StrEnum):
    """The files that --print writes."""

    SYSTEMD = "systemd"
    DOCKERFILE = "dockerfile"
    COMPOSE = "compose"
    KUBERNETES = "kubernetes"


@dataclass(frozen=True, slots=True)
class AddressOptions:
    """Where the service is, and who may use it."""

    title: ClassVar[str] = "Who may ask"
    host: Annotated[str, option("--host HOST", HOST_HELP)] = "127.0.0.1"
    port: Annotated[int, option("--port PORT", "The port; 0 for any that is free.", min=0, max=65535)] = 8000
    token: Annotated[
        str | None, option("--token TOKEN", TOKEN_HELP, envvar="VLMKIT_TOKEN", callback=valid_utf8, hide_input=True)
    ] = None
    allow_host: Annotated[Several, option("--allow-host NAME", ALLOW_HELP, show_default=False)] = None
    cors: Annotated[Several, option("--cors ORIGIN", CORS_HELP, show_default=False)] = None
    allow_private: AllowPrivate = False


@dataclass(frozen=True, slots=True)
class LimitOptions:
    """What a request may take."""

    title: ClassVar[str] = "Limits"
    max_body: Annotated[int, option("--max-body MIB", "Refuse requests of more MiB.", min=1)] = 32
    max_queue: Annotated[int, option("--max-queue N", "Refuse requests beyond N that wait or run.", min=1)] = 128
    timeout: Annotated[float, option("--timeout SECONDS", "Give up a request after so long.", min=0.1)] = 300.0
    max_pixels: Annotated[
        int, option("--max-pixels N", "Refuse pictures of more pixels.", min=1, envvar=MAX_PIXELS_VARIABLE)
    ] = 100_000_000


@dataclass(frozen=True, slots=True)
class Machine(Common):
    """Where models run."""

    title: ClassVar[str] = RUNNING
    device: RunsOn = Device.AUTO
    workers: Workers = 0
    idle: Annotated[float, option("--idle SECONDS", "Unload a model not used for so long; 0: never.", min=0)] = 1800.0


def serve(
    ctx: typer.Context,
    machine: Machine,
    address: AddressOptions,
    limits: LimitOptions,
    index: IndexName = "default",
    model: Models = None,
    precision: EmbedPrecision = None,
    mcp: Annotated[bool, option("--mcp", MCP_HELP)] = False,
    printed: Annotated[Printed | None, option("--print", PRINT_HELP, show_default=False)] = None,
) -> Exit:
    """Show a page over your pictures, and answer over HTTP with the interface of OpenAI's.

    The page is at /, or /?q=WORDS: search by words and pictures, each picture with its facts and a place to ask about
    it, duplicates, a chat (see vlmkit-page(7)). For other programs there are
    /v1/chat/completions, /v1/embeddings of texts and pictures, /v1/search in the index, /v1/classify, /v1/models,
    /metrics for Prometheus, /health, and /openapi.json, which describes them. Models are loaded when a request first
    asks for them, and requests that wait go through them together. An index that changes is opened again.

    Only this machine is answered, unless --host says otherwise. The headers Host and Origin are checked, so that no web
    page reaches the service unless --cors names it. Pictures come with the request, by URL from public addresses, or
    from the index by the id of a record; other files are not opened. SIGTERM ends the service after the requests that
    run. Needs the extra `serve`.

    With --mcp an assistant starts the command, and has three tools that only read: search, look and ask. It needs the
    extra `mcp`.
    """
    if mcp:
        return _assist(address, limits, machine, index, _models(ctx, model), precision, printed)
    if printed is not None:
        chosen = [word for options in (address, limits, machine) for word in _flags(options)]
        chosen += [word for name in model or () for word in ("--model", name)]
        chosen += ["--precision", precision.value] if precision else []
        return _print(printed, address, index, chosen, limits.timeout, machine.device)
    check_installed("serve", "vlmkit[serve]", *NEEDED)
    from vlmkit.serve import server
    from vlmkit.serve.service import Service
    from vlmkit.serve.settings import is_loopback

    token = _token(address.token, is_loopback(address.host))
    settings = _settings(address, limits, machine, index, _models(ctx, model), precision, token)
    service = Service(settings)
    with server.bind(address.host, address.port) as listener:
        if token is not None and address.token is None:
            warn(f"the token is {token}")
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if token is not None and address.token is None:
            warn(f"a browser gets in by {url}/login?token={token}")
        if not machine.quiet:
            warn(f"serving {', '.join(settings.models)} and the index {settings.index} at {url}; Ctrl-C ends it")
        server.run(service, listener, log=machine.verbose and not machine.quiet)
    return Exit.OK


def _assist(
    address: AddressOptions,
    limits: LimitOptions,
    machine: Machine,
    index: str,
    models: dict[str, str],
    precision: Precision | None,
    printed: Printed | None,
) -> Exit:
    """Speak with an assistant until it leaves."""
    own = AddressOptions()
    given: dict[str, object] = {"--host": address.host != own.host, "--port": address.port != own.port}
    given |= {"--allow-host": address.allow_host, "--cors": address.cors, "--print": printed}
    if unfit := next((flag for flag, value in given.items() if value), None):
        raise VlmkitError(f"--mcp speaks on standard input and output, without {unfit}", f"leave {unfit} out")
    check_installed("serve --mcp", "vlmkit[mcp]", "mcp", *NEEDED)
    from vlmkit.serve.mcp import run
    from vlmkit.serve.service import Service

    settings = _settings(address, limits, machine, index, models, precision, None)
    service = Service(settings)
    if not machine.quiet:
        warn(f"answering an assistant about the index {settings.index}; it ends with standard input")
    run(service)
    return Exit.OK


def _settings(
    address: AddressOptions,
    limits: LimitOptions,
    machine: Machine,
    index: str,
    models: dict[str, str],
    precision: Precision | None,
    token: str | None,
) -> "Settings":
    from vlmkit.index import index_folder
    from vlmkit.models.types import Hardware
    from vlmkit.serve.settings import MIB, Settings

    os.environ[MAX_PIXELS_VARIABLE] = str(limits.max_pixels)
    return Settings(
        index=index_folder(index),
        host=address.host,
        token=token,
        models=models,
        hardware=Hardware(machine.device.value, precision=precision.value if precision else None),
        threads=cores(machine.workers),
        hosts=tuple(address.allow_host or ()),
        origins=tuple(address.cors or ()),
        allow_private=address.allow_private,
        max_body=limits.max_body * MIB,
        max_queue=limits.max_queue,
        timeout=limits.timeout,
        idle=machine.idle,
    )


def _flags(options: object) -> list[str]:
    """The words of a command line for what differs from the defaults, but for the address and what is secret."""
    words: list[str] = []
    for each in fields(options):  # type: ignore[arg-type]
        value, flag = getattr(options, each.name), f"--{each.name.replace('_', '-')}"
        if value in (None, each.default) or each.name in ("host", "port", "token"):
            continue
        for one in value if isinstance(value, list) else [value]:
            words += [flag] if one is True else [flag, f"{one:g}" if isinstance(one, float) else str(one)]
    return words


def _print(
    printed: Printed, address: AddressOptions, index: str, chosen: list[str], timeout: float, device: Device
) -> Exit:
    from vlmkit.index import index_folder
    from vlmkit.serve.deployment import Deployment

    uses_gpu = device is not Device.CPU
    deployment = Deployment(address.host, address.port, index_folder(index), chosen, timeout, uses_gpu)
    Output().write(deployment.text(printed.value).encode())
    return Exit.OK


def _token(given: str | None, only_this_machine: bool) -> str | None:
    if given is None:
        return None if only_this_machine else secrets.token_urlsafe(24)
    if not given.strip() or not given.isascii() or not given.isprintable():
        raise VlmkitError("--token must be printable ASCII", "leave it out to have one made")
    return given.strip()


def _models(ctx: typer.Context, given: list[str] | None) -> dict[str, str]:
    """The names that requests may use, each with its model."""
    defaults = [os.environ.get(name) or "mini" for name in ("VLMKIT_EMBED_MODEL", "VLMKIT_CHAT_MODEL")]
    models: dict[str, str] = {}
    for text in given or named_models(ctx, [*dict.fromkeys(defaults)]) or ():
        known, equals, name = text.partition("=")
        if not equals or os.path.exists(text):
            known = name = text
        if not known or not name:
            raise VlmkitError(f"--model {text} lacks a name", "write MODEL, or NAME=MODEL")
        models[known] = name
    return models
