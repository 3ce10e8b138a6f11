"""Runs the service by uvicorn until a signal ends it; requests that run are answered first."""

import asyncio
import logging
import math
import re
import socket

import uvicorn

from vlmkit.errors import VlmkitError, first_line
from vlmkit.io.terminal import warn
from vlmkit.serve.app import application
from vlmkit.serve.limits import Http
from vlmkit.serve.service import Service

CONNECTIONS = 1000
HEAD_BYTES = 32 << 10
KEEP_ALIVE = 30  # seconds
BACKLOG = 512
TOKEN = re.compile(r"\btoken=[^&\s]+")  # in the URL of a first visit


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at `host`, at any free port with 0. Raises VlmkitError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # without it asyncio sets no TCP_NODELAY
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        what = f"cannot listen at {host} port {port}: {error.strerror or error}"
        raise VlmkitError(what, "name another --host or --port; --port 0 takes a free one") from None
    return made


def run(service: Service, listener: socket.socket, *, log: bool) -> None:
    """Answer requests until SIGINT or SIGTERM, which is raised again at the end. With `log` each request is a line."""
    _log_through_warn(log)
    config = uvicorn.Config(
        application(service),
        http=Http,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=log,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(service.settings.timeout),
        h11_max_incomplete_event_size=HEAD_BYTES,
    )

    async def answer() -> None:
        async with service.running():
            await uvicorn.Server(config).serve(sockets=[listener])

    asyncio.run(answer())


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        reason = f": {first_line(error)}" if isinstance(error, Exception) else ""
        warn(TOKEN.sub("token=…", record.getMessage().strip() + reason))


def _log_through_warn(log: bool) -> None:
    """What libraries have to say goes to standard error as vlmkit's own lines: errors, and with `log` each request."""
    levels = {"uvicorn.access": logging.INFO if log else logging.ERROR}
    for name in ("uvicorn.error", "uvicorn.access", "python_multipart", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Lines()], False
        logger.setLevel(levels.get(name, logging.ERROR))
