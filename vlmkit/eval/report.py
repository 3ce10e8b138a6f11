"""One self-contained HTML page of scored items: worst first, thumbnails inside, filters by category and flip."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from vlmkit.io.records import Record
from vlmkit.render.html import beginning, escaped, picture

MOST_ITEMS = 500
THUMBNAIL = 200  # pixels
FILTERS = ("category", "flip")
OUTSIDE_ROWS = ("id", "image", "question", "category", "flip", "score")
STYLE = """
body { max-width: 70rem; }
h2 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; }
.figures { margin: 1rem 0 2rem; }
.figures td, .figures th { border-bottom: 1px solid var(--line); }
.figures :is(td, th):not(:first-child) { text-align: right; font-variant-numeric: tabular-nums; }
nav { position: sticky; top: 0; background: Canvas; padding: .6rem 0; border-bottom: 1px solid var(--line); }
nav { display: flex; gap: 1rem; flex-wrap: wrap; align-items: center; }
article { display: grid; grid-template-columns: 200px 1fr; gap: 1rem; padding: 1rem 0; }
article { border-bottom: 1px solid var(--line); }
article[hidden] { display: none; }
article img { max-width: 200px; max-height: 200px; }
article .none { height: 6rem; }
article td { overflow-wrap: anywhere; }
article th { font-weight: 600; white-space: nowrap; }
.tags { font-size: .85rem; opacity: .8; }
footer { font-size: .75rem; opacity: .8; overflow-wrap: anywhere; margin-top: 2rem; }
@media (max-width: 40rem) { article { grid-template-columns: 1fr; } }
"""
SCRIPT = """
const cards = [...document.querySelectorAll('article')], boxes = [...document.querySelectorAll('nav select')];
const words = document.querySelector('nav input'), count = document.querySelector('nav output');
function show() {
  const text = words.value.toLowerCase();
  let seen = 0;
  for (const card of cards) {
    card.hidden = boxes.some(b => b.value && card.dataset[b.name] !== b.value)
      || !card.textContent.toLowerCase().includes(text);
    seen += !card.hidden;
  }
  count.textContent = seen + ' shown';
}
boxes.forEach(b => b.onchange = show); words.oninput = show; show();
"""


def page(title: str, figures: Sequence[Record], items: Sequence[Record]) -> Iterator[bytes]:
    """The page in pieces, each UTF-8: the figures, then the 500 worst of `items` (those where A and B differ)."""
    shown = sorted(items, key=lambda item: -abs(item["score"]) if "flip" in item else item["score"])[:MOST_ITEMS]
    yield _e(
        f"{beginning(title, STYLE)}{_figures(figures)}<nav>"
        f"{''.join(_choice(name, shown) for name in FILTERS)}"
        f'<label>Search <input type="search"></label><output></output></nav>'
    )
    for item in shown:
        yield _e(_card(item))
    rest = f"<p>The {MOST_ITEMS} worst of {len(items)} items.</p>" if len(items) > MOST_ITEMS else ""
    signatures = "<br>".join(escaped(s) for s in dict.fromkeys(str(figure["signature"]) for figure in figures))
    yield _e(f"{rest}<footer>{signatures}</footer><script>{SCRIPT}</script></html>\n")


def _e(text: str) -> bytes:
    return text.encode(errors="backslashreplace")


def _figures(figures: Sequence[Record]) -> str:
    """The figures over all items, then a table of those by category: one row a category, one column a metric."""
    grouped = [figure for figure in figures if "category" in figure]
    compared = any("a" in figure for figure in figures)
    titles = [
        "metric",
        *(["A", "B", "A - B"] if compared else ["value"]),
        "95 % interval",
        "p" if compared else "",
        "n",
    ]
    rows = []
    for figure in figures:
        if "category" not in figure:
            sides = [number(figure["a"]), number(figure["b"])] if compared else []
            chance = number(figure["p"]) if compared else ""
            rows.append([name_of(figure), *sides, number(figure["value"]), bounds(figure), chance, figure["n"]])
    text = _table(titles, rows)
    if grouped:
        metrics = list(dict.fromkeys(figure["metric"] for figure in grouped))
        by_category: dict[str, dict[str, Record]] = {}
        for figure in grouped:
            by_category.setdefault(category_of(figure), {})[figure["metric"]] = figure
        rows = [
            [
                category,
                *(number(found[m]["value"]) if m in found else "" for m in metrics),
                max(f["n"] for f in found.values()),
            ]
            for category, found in by_category.items()
        ]
        text += _table(["category", *metrics, "n"], rows)
    return text


def _table(titles: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escaped(title)}" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{escaped(cell)}" for cell in row) for row in rows)
    return f'<table class="figures"><tr>{head}{body}</table>'


def name_of(figure: Record) -> str:
    """What a figure is called in a table: the metric, and what it is of."""
    if figure["metric"] == "confusion":
        return f"confusion: {figure['wanted']} answered {figure['answered'] or 'nothing'}"
    return f"{figure['metric']} ({category_of(figure)})" if "category" in figure else str(figure["metric"])


def category_of(figure: Record) -> str:
    """A figure's category, and whether it was told from the questions."""
    return f"{figure['category']}, guessed" if "guessed" in figure else str(figure["category"])


def number(value: Any) -> str:
    return "none" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def bounds(figure: Record) -> str:
    return "" if figure["ci95"] is None else " to ".join(number(bound) for bound in figure["ci95"])


def _choice(name: str, items: Sequence[Record]) -> str:
    values = sorted({str(item[name]) for item in items if name in item})
    if not values:
        return ""
    options = "".join(f'<option value="{escaped(value)}">{escaped(value)}</option>' for value in values)
    return f'<label>{name.capitalize()} <select name="{name}"><option value="">all</option>{options}</select></label>'


def _card(item: Record) -> str:
    told = {k: v for k, v in item.items() if k not in OUTSIDE_ROWS}
    scores = {k: told.pop(k) for k, v in item.items() if k in told and isinstance(v, int | float)}
    if scores:
        told["scores"] = ", ".join(f"{name} {number(value)}" for name, value in scores.items())
    rows = "".join(f"<tr><th>{escaped(k)}<td>{_value(v)}" for k, v in told.items())
    tags = [item["id"], f"score {number(item['score'])}", *(item[name] for name in FILTERS if name in item)]
    data = "".join(f' data-{name}="{escaped(item[name])}"' for name in FILTERS if name in item)
    heading = escaped(item.get("question") or item["id"])
    return (
        f"<article{data}>{picture(item.get('image'), THUMBNAIL)}<div><h2>{heading}</h2>"
        f'<div class="tags">{" · ".join(map(escaped, tags))}</div><table>{rows}</table></div></article>'
    )


def _value(value: Any) -> str:
    if isinstance(value, list):
        lines = Counter(str(entry) for entry in value)
        return "<br>".join(escaped(line) + (f" × {count}" if count > 1 else "") for line, count in lines.items())
    if isinstance(value, dict):
        return "<br>".join(f"{escaped(k)}: {_value(v).replace('<br>', ', ')}" for k, v in value.items())
    return escaped(value) if value != "" else "<i>empty</i>"
