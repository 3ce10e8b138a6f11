"""Man pages of sections 5 and 7 from Markdown: headings, paragraphs, lists, tables, code in lines and in blocks."""

import re
from collections.abc import Iterator

from vlmkit import __version__

TITLE = re.compile(r"# (?P<name>[\w-]+)\((?P<section>[57])\): (?P<what>.+)")
COLUMNS = 70  # of a table, in characters
BREAKS = re.compile(r"(?<=\w)(\\-|[/._:-])(?=\w)|(?<=[a-z])(?=[A-Z])")  # where a long name may be broken
LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")


def roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("…", "\\&...")
    return re.sub(r"^\.", "\\&.", text, flags=re.MULTILINE)


def file_name(source: str) -> str:
    """The name of the page whose Markdown is `source`, such as vlmkit-python.7."""
    title = TITLE.match(source)
    if title is None:
        raise ValueError("a page begins with `# NAME(SECTION): what it is`")
    return f"{title['name']}.{title['section']}"


def page(source: str) -> str:
    """The page whose Markdown is `source`."""
    title, *blocks = re.split(r"\n{2,}(?=\S)", source.strip())
    found = TITLE.fullmatch(title)
    if found is None:
        raise ValueError(f"{title}: a page begins with `# NAME(SECTION): what it is`")
    name, section, what = found.groups()
    head = f'.TH {name.upper()} {section} "" "vlmkit {__version__}" "vlmkit manual"'
    body = [_block(block) for block in _fenced(blocks)]
    needs_tbl = ["'\\\" t"] if any(block.startswith(".TS") for block in body) else []
    names = f".SH NAME\n{roff(f'{name} - {what}')}"
    return "\n".join([*needs_tbl, head, ".ad l\n.nh", names, ".SH DESCRIPTION", *body]) + "\n"


def _fenced(parts: list[str]) -> Iterator[str]:
    """Paragraphs; a fenced block of code is one, also where blank lines stand in it."""
    rest = iter(parts)
    for part in rest:
        while part.startswith("```") and not part.endswith("\n```"):
            part += "\n\n" + next(rest)
        yield part


def _block(block: str) -> str:
    if block.startswith("### "):
        return f".SS {_inline(block[4:])}"
    if block.startswith("## "):
        return f".SH {roff(block[3:].upper())}"
    if block.startswith("```"):
        return "\n".join([".PP\n.nf\n.RS 4", *map(roff, block.split("\n")[1:-1]), ".RE\n.fi"])
    if block.startswith("|"):
        return _table(block.split("\n"))
    if block.startswith("- "):
        return "\n".join(f".IP \\(bu 2\n{_inline(item)}" for item in re.split(r"^- ", block, flags=re.MULTILINE)[1:])
    if block.startswith("<!--"):
        return f'.\\" {block[4:-3].strip()}'
    return f".PP\n{_inline(block)}"


def _table(lines: list[str]) -> str:
    """A table for tbl: cells are wrapped in columns that share the line by their texts; a head, if any, is bold."""
    rows = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    head, body = rows[0], rows[2:]
    form = " ".join(f"lw({width}n)" for width in _widths(rows))
    shown = [["**" + cell + "**" if cell else "" for cell in head], *body] if any(head) else body
    cells = ["\t".join(f"T{{\n{_inline(cell, breaks=True)}\nT}}" for cell in row) for row in shown]
    return "\n".join([".TS", f"{form}.", *cells, ".TE"])


def _widths(rows: list[list[str]]) -> list[int]:
    """Of columns, in characters: each has place for its longest word, and what is left goes to those of long texts."""
    columns = list(zip(*rows, strict=True))
    least = [max(len(part) for cell in column for part in BREAKS.sub(r"\1 ", cell).split()) for column in columns]
    sizes = [sum(map(len, column)) ** 0.5 for column in columns]
    left = max(0, COLUMNS - 3 * len(columns) - sum(least))
    return [width + int(left * size / sum(sizes)) for width, size in zip(least, sizes, strict=True)]


def _inline(text: str, breaks: bool = False) -> str:
    text = LINK.sub(lambda link: link[1] if link[2].startswith(("#", "vlmkit-")) else f"{link[1]} ({link[2]})", text)
    text = roff(" ".join(text.split()))
    if breaks:
        text = BREAKS.sub(r"\1\\:", text)
    text = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", text)
    return re.sub(r"\*\*([^*]+)\*\*", r"\\fB\1\\fR", text)
