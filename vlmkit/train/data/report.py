"""The report of the rows read, kept and dropped of each DATA, and why: a table on a terminal, else plain lines."""

from collections import Counter
from dataclasses import dataclass, field

from vlmkit.io.terminal import console, stderr_is_terminal, warn


@dataclass(slots=True)
class Counts:
    """The rows of one DATA, and the samples made of those that are kept."""

    name: str
    weight: float = 1.0
    read: int = 0
    samples: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)  # samples of rows that were kept
    cut: int = 0  # samples whose end is left out
    fingerprint: str = ""  # of the rows that are kept

    @property
    def dropped(self) -> int:
        return self.reasons.total()

    @property
    def kept(self) -> int:
        return self.read - self.dropped

    @property
    def why(self) -> str:
        rows = [f"{count} {reason}" for reason, count in self.reasons.most_common()]
        return ", ".join(rows + [f"{count} samples whose {reason}" for reason, count in self.lost.most_common()])

    def drop_sample(self, reason: str) -> None:
        self.samples -= 1
        self.lost[reason] += 1


def show(table: list[Counts]) -> None:
    """Write `table` to standard error."""
    if stderr_is_terminal():
        _draw(table)
        return
    for row in table:
        weight = f", weight {row.weight:g}" if row.weight != 1 else ""
        why = f": {row.why}" if row.why else ""
        kept = f"{row.kept} kept ({row.samples} samples){weight}"
        warn(f"{row.name}: {row.read} rows read, {kept}, {row.dropped} dropped{why}")


def _draw(table: list[Counts]) -> None:
    from rich.table import Table
    from rich.text import Text

    drawn = Table("data", box=None, pad_edge=False)
    for name in ("weight", "read", "kept", "dropped", "samples"):
        drawn.add_column(name, justify="right")
    drawn.add_column("why")
    for row in table:
        counts = (f"{row.weight:g}", *map(str, (row.read, row.kept, row.dropped, row.samples)))
        drawn.add_row(Text(row.name, overflow="fold"), *counts, Text(row.why))
    console(stderr=True).print(drawn)
