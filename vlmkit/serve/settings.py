"""What a service is told when it starts."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vlmkit.models.types import Hardware

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of a service.

    `models` are those that clients may ask for, by the names that they use. `hosts` are further values of the header
    Host, `origins` the web pages of other origins that may send requests. A body has at most `max_body` bytes; at most
    `max_queue` requests wait or run. A request may take `timeout` seconds, and so may the end of those that run when
    the service ends. A model is unloaded after `idle` seconds without a request, never with 0.
    """

    index: Path
    host: str = "127.0.0.1"
    token: str | None = None
    models: Mapping[str, str] = field(default_factory=lambda: {"mini": "mini"})
    hardware: Hardware = field(default_factory=Hardware)
    threads: int = 2
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    allow_private: bool = False
    max_body: int = 32 * MIB
    max_queue: int = 128
    timeout: float = 300.0
    idle: float = 1800.0


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_wildcard(host: str) -> bool:
    """Whether `host` stands for all addresses of this machine."""
    try:
        return ipaddress.ip_address(host or "0.0.0.0").is_unspecified
    except ValueError:
        return False
