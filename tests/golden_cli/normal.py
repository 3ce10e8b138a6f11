"""What a command wrote, as text that is the same at each run: without paths, times, and what libraries decide.

`exact` keeps numbers, embeddings and sums of files, which are the same on one machine alone.
"""

import hashlib
import json
import re
import sqlite3
import struct
import tarfile
from pathlib import Path

LONGEST = 5000  # characters of a file that are shown
VARYING = [
    (r'("(?:ms|seconds|memory_gb|[a-z]+_per_s(?:econd)?)": ?)[-\d.e+]+', r"\1T"),
    (r"\b\d+(?:\.\d+)? s, \d[\d.e+]* a second", "T s, R a second"),
    (r'("mtime":)\d+\.\d*[1-9]\d*', r"\1T"),  # not one of the inputs'
    (r"(images/)[0-9a-f]{20}\b", r"\1NAME"),  # by an address with a port
    (r"(openai:\w+@)[0-9a-f]{12}\b", r"\1ID"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:PORT"),
    (r"vlmkit-(demo|tiny)-\w+", r"vlmkit-\1-TMP"),
    (r"(?<=tmp/)tmp\w{8}", "TMP"),
    (r"\.[0-9a-f]{8}\.part", ".TMP.part"),
    (r"\b(vlmkit|version) \d+\.\d+\.\d+(?:\w*)", r"\1 VERSION"),
    (r'(\\?"version\\?":\\?")[\d.]+', r"\1VERSION"),
    (r"\b(vlmkit|torch|transformers|open_clip|timm|trl|peft)(:|==| )v?\d+\.\d+(\.\d+)?\b", r"\1\2VERSION"),
    (r"\b20[2-9]\d-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?)?", "DATE"),
    (r'("ctime":)[\d.]+', r"\1N"),
    (r'("transformers_version": )"[^"]*"', r'\1"VERSION"'),
]
COARSE = [
    (r'("embedding":)"([A-Za-z0-9+/=]+)"', lambda found: f'{found[1]}"<{len(found[2])} of base64>"'),
    (r'("embedding":)\[([-\d.e+,]+)\]', lambda found: f"{found[1]}[<{found[2].count(',') + 1} numbers>]"),
    (r"(data:image/\w+;base64,)[A-Za-z0-9+/=]+", r"\1…"),
    (r'("bytes":)\d+', r"\1N"),
    (r"(?<!mini)@[0-9a-f]{12}\b", "@ID"),
    (r"(?<![\w.@])[0-9a-f]{12,64}(?!\w|\.\d)(-[0-9a-f]{12})?", "SUM"),
    (r"(?<![\w.])-?\d+\.\d+(?:[eE][-+]?\d+)?(?![\w.])", lambda found: _rounded(found[0])),
]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f]")
NUMBER = re.compile(r"(?<![\w.])-?\d+\.?\d*(?:[eE][-+]?\d+)?(?![\w.])")


class Normal:
    """How to write down what is found; `places` are paths with the names that they get."""

    def __init__(self, places: dict[str, str], exact: bool) -> None:
        self.exact = exact
        self._rules = [(re.compile(re.escape(path)), name) for path, name in places.items()]
        self._rules += [(re.compile(pattern), to) for pattern, to in VARYING + ([] if exact else COARSE)]

    def text(self, text: str) -> str:
        text = re.sub(r"[ \t\r]+$", "", text, flags=re.MULTILINE)  # tables end at the longest path
        for pattern, to in self._rules:
            text = pattern.sub(to, text)
        return text

    def stream(self, data: bytes) -> str:
        """Standard output or error, or what stands in a file."""
        if is_blob(data):
            return self._blobs(data)
        try:
            return self.text(CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", data.decode()))
        except UnicodeDecodeError:
            return self._sum(data, "bytes")

    def file(self, path: Path) -> str:
        """What `path` holds, in full where that is a short text."""
        data = path.read_bytes()
        if data.startswith(b"SQLite format 3\0"):
            return self._database(path)
        if path.suffix == ".tar":
            return self._tar(path)
        if is_blob(data) or not data or b"\0" in data:
            return self._blobs(data) if is_blob(data) else self._sum(data, "bytes") if data else "(empty)"
        if path.suffix in (".json", ".jinja") and any(path.parent.glob("*.safetensors")):
            return self._sum(self.stream(data).encode(), "text of a model")
        shown = self.stream(data)
        if len(shown) <= LONGEST:
            return shown
        return f"{shown[:LONGEST]}…\n{self._sum(shown.encode(), 'text')}"

    def _sum(self, data: bytes, what: str) -> str:
        return f"({what}, SHA-256 {hashlib.sha256(data).hexdigest()})" if self.exact else f"({what})"

    def _blobs(self, data: bytes) -> str:
        """The tensors of one safetensors file, or of several one after the other, and the records in them."""
        told = [self._sum(data, "safetensors")]
        while data:
            end = 8 + struct.unpack("<Q", data[:8])[0]
            header = json.loads(data[8:end])
            told.append(self.text(json.dumps(header.pop("__metadata__", None), separators=(",", ":"))))
            for name, about in sorted(header.items()) if len(header) < 4 else ():
                first, last = about["data_offsets"]
                if name == "records":
                    told.append(self.text(data[end + first : end + last].decode()).rstrip("\n"))
                else:
                    told.append(f"{name} {about['dtype']} {about['shape']}")
            if len(header) >= 4:
                told.append(f"{len(header)} tensors")
            data = data[end + max(about["data_offsets"][1] for about in header.values()) :]
        return "\n".join(told)

    def _tar(self, path: Path) -> str:
        told = []
        with tarfile.open(path) as tar:
            for member in tar:
                found = tar.extractfile(member)
                told.append(f"{member.name}: {self.stream(found.read() if found else b'').rstrip()}")
        return "\n".join(told)

    def _database(self, path: Path) -> str:
        with sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True) as database:
            dump = "\n".join(database.iterdump())
        return self._sum(re.sub(r"\b\d{19}\b", "TIME", self.text(dump)).encode(), "SQLite")


def is_blob(data: bytes) -> bool:
    return data[8:10] == b'{"' and len(data) > 16


def _rounded(number: str) -> str:
    digits = re.sub(r"[eE].*|\D", "", number).lstrip("0")
    return number if len(digits) <= 3 or number.endswith(".0") else f"{float(number):.3g}"


def alike(ours: str, theirs: str) -> bool:
    """Whether two lines are the same but for numbers that differ by rounding."""
    if ours == theirs:
        return True
    if NUMBER.sub("#", ours) != NUMBER.sub("#", theirs):
        return False
    pairs = zip(NUMBER.findall(ours), NUMBER.findall(theirs), strict=True)
    return all(a == b or ("." in a + b and _close(float(a), float(b))) for a, b in pairs)


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= max(0.002, 0.02 * max(abs(a), abs(b)))
