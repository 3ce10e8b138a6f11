"""Results as a table, and one self-contained HTML page of the items: worst first, thumbnails, filters."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vlmkit.io.records import Record
from vlmkit.render.html import picture, render

MOST_ITEMS = 500
THUMBNAIL = 200  # pixels
FILTERS = ("category", "flip")
OUTSIDE_ROWS = ("id", "image", "question", "category", "flip", "score")


def page(title: str, results: Sequence[Record], items: Sequence[Record]) -> Iterator[bytes]:
    """The page in pieces, each UTF-8: the results, then the 500 worst of `items` (those where A and B differ most)."""
    shown = sorted(items, key=lambda item: -abs(item["score"]) if "flip" in item else item["score"])[:MOST_ITEMS]
    return render(
        "eval_report.html",
        title=title,
        tables=[result_table([r for r in results if "category" not in r]), *_category_table(results)],
        filters={name: sorted({str(item[name]) for item in shown if name in item}) for name in FILTERS},
        items=map(_card, shown),
        note=f"The {MOST_ITEMS} worst of {len(items)} items." if len(items) > MOST_ITEMS else "",
        signatures=list(dict.fromkeys(str(result["signature"]) for result in results)),
    )


def result_table(results: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """The titles and the rows of a table of results, the first column their names."""
    pairs = list(dict.fromkeys(tuple(result["files"]) for result in results if "files" in result))
    several = ["compared with"] if len(pairs) > 1 else []
    names = [pairs[0][0], "the other" if several else pairs[0][1], "difference"] if pairs else ["value"]
    titles = ["metric", *several, *names, "95 % interval", *(["p"] if pairs else []), "n"]
    rows = []
    for result in results:
        interval = " to ".join(map(_number, result["ci95"] or ()))
        values = [_number(result[name]) for name in (("a", "b", "value") if pairs else ("value",))]
        p = [_number(result["p"])] if pairs else []
        other = [result["files"][1]] if several else []
        rows.append([_name(result), *other, *values, interval, *p, str(result["n"])])
    return titles, rows


def _category_table(results: Iterable[Record]) -> Iterator[tuple[list[str], list[list[str]]]]:
    """One row a category, one column a metric, where there are categories."""
    by_category: dict[str, dict[str, Record]] = {}
    for result in results:
        if "category" in result:
            by_category.setdefault(_category(result), {})[result["metric"]] = result
    metrics = list(dict.fromkeys(metric for found in by_category.values() for metric in found))
    rows = []
    for category, found in by_category.items():
        values = [_number(found[metric]["value"]) if metric in found else "" for metric in metrics]
        rows.append([category, *values, str(max(result["n"] for result in found.values()))])
    if rows:
        yield ["category", *metrics, "n"], rows


def _name(result: Record) -> str:
    if result["metric"] == "confusion":
        return f"confusion: {result['wanted']} answered {result['answered'] or 'nothing'}"
    return f"{result['metric']} ({_category(result)})" if "category" in result else str(result["metric"])


def _category(result: Record) -> str:
    return f"{result['category']}, guessed" if "guessed" in result else str(result["category"])


def _number(value: Any) -> str:
    return "none" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _card(item: Record) -> dict[str, Any]:
    rows = {name: value for name, value in item.items() if name not in OUTSIDE_ROWS}
    scores = {name: rows.pop(name) for name, value in item.items() if name in rows and isinstance(value, int | float)}
    if scores:
        rows["scores"] = ", ".join(f"{name} {_number(value)}" for name, value in scores.items())
    return {
        "record": item,
        "picture": picture(item.get("image"), THUMBNAIL),
        "heading": item.get("question") or item["id"],
        "tags": [item["id"], f"score {_number(item['score'])}", *(item[name] for name in FILTERS if name in item)],
        "rows": {name: _lines(value) for name, value in rows.items()},
    }


def _lines(value: Any) -> list[str]:
    """A value as lines of text, none where it is empty; equal entries of a list become one with a count."""
    if isinstance(value, list):
        counts = Counter(map(str, value))
        return [f"{entry} × {count}" if count > 1 else entry for entry, count in counts.items()]
    if isinstance(value, dict):
        return [f"{name}: {', '.join(_lines(inner)) or 'empty'}" for name, inner in value.items()]
    return [str(value)] if value != "" else []
