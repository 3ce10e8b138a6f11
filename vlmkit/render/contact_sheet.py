"""A contact sheet: the pictures of result lists on one self-contained HTML page."""

from collections.abc import Iterable, Iterator

from vlmkit.errors import one_line
from vlmkit.io.parts import file_url
from vlmkit.io.records import Record
from vlmkit.io.sources import is_data, is_url
from vlmkit.render.html import picture, placeholder, render

PIXELS = 400  # of the longer side: shown at half of it, full size in the large view
MOST_PICTURES = 1000  # on one page, some 30 MB


def contact_sheet(title: str, lists: Iterable[tuple[str, list[Record]]]) -> Iterator[bytes]:
    """The page in pieces, each UTF-8, as the `lists` come: a heading, which may be empty, and its records."""
    shown = 0

    def figure(record: Record) -> tuple:
        nonlocal shown
        image = record.get("image")
        shown_as = None if isinstance(image, str) and is_data(image) else image
        name = one_line(str(shown_as or record.get("text") or record["id"]))
        numbers = [f"{record['rank']}."] if "rank" in record else []
        numbers += [f"{record[field]:.3f}" for field in ("score", "relative") if field in record]
        numbers += [one_line(str(record["match_line"]))] if "match_line" in record else []
        if image is None:
            box = placeholder(name)
        elif shown == MOST_PICTURES:
            box = placeholder(f"the page has {MOST_PICTURES} pictures")
        else:
            box = picture(image, PIXELS)
        opens = box.startswith("<img")
        shown += opens
        link = None
        if isinstance(image, str) and not is_data(image):
            link = image if is_url(image) else file_url(image)
        return name, link, " ".join(numbers), box, opens

    lists_of_figures = ((one_line(heading), map(figure, records)) for heading, records in lists)
    return render("contact_sheet.html", title=one_line(title), lists=lists_of_figures)
