"""The page of a service as text, and an index of many records."""

import re
from collections.abc import Sequence
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
from serving import Served

from vlmkit.io.records import dumps

HTML = {"Accept": "text/html"}


def text(page: Served, path: str, status: int = 200, /, **parameters: object) -> str:
    """A page, which needs nothing from elsewhere and nothing inline."""
    response = page.get(f"{path}?{urlencode(parameters, doseq=True)}" if parameters else path, **HTML)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    Checker().feed(response.text)
    return response.text


class Checker(HTMLParser):
    """Fails for what the policy forbids, a picture without a text in its place, and a field without a name."""

    labels = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert not any(name.startswith("on") or name == "style" for name in values), (tag, attrs)
        assert tag != "style" and (tag != "script" or (values["src"] or "").startswith("/static/page.js?"))
        assert all((values.get(name) or "/").startswith(("/", "#")) for name in ("src", "href", "action")), attrs
        assert all(not (values.get(name) or "").startswith("//") for name in ("src", "href", "action")), attrs
        assert tag != "img" or "alt" in values
        self.labels += tag == "label"
        if tag in ("input", "select", "textarea") and values.get("type") != "hidden":
            assert self.labels or values.get("aria-label"), attrs

    def handle_endtag(self, tag: str) -> None:
        self.labels -= tag == "label"


def names(html: str) -> list[str]:
    return [unescape(name) for name in re.findall(r'class="name">(.*?)</span>', html, re.DOTALL)]


def key_of(album: Path, name: str) -> str:
    return quote(str(album / name), safe="")


def random_rows(images: Sequence[str]) -> bytes:
    """A record of each path, the last one the newest, with a random vector."""
    rng = np.random.default_rng(0)
    lines = []
    for i, image in enumerate(images):
        vector = rng.standard_normal(16).astype("f4")
        row = {"id": f"{i:03}", "image": image, "mtime": 1e9 + i, "model": "mini@0"}
        lines.append(dumps(row | {"embedding": (vector / np.linalg.norm(vector)).astype("<f2")}))
    return b"".join(lines)
