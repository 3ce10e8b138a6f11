"""A contact sheet: the pictures of result lists on one HTML page that stands for itself."""

import os
from collections.abc import Callable
from urllib.parse import quote

from vlmkit.errors import one_line
from vlmkit.io.records import Record
from vlmkit.io.sources import is_url
from vlmkit.render.html import beginning, escaped, picture

PIXELS = 400  # of the longer side: shown at half of it, whole in the large view
MOST_PICTURES = 1000  # on one page, some 30 MB
STYLE = """
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; overflow-wrap: anywhere; }
section { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; }
button { all: unset; display: block; width: 100%; cursor: zoom-in; }
button:focus-visible, a:focus-visible { outline: 3px solid Highlight; }
button img, .none { width: 100%; height: 200px; object-fit: contain; background: var(--soft); }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
a { color: inherit; }
dialog { border: 0; padding: 1rem; background: Canvas; color: CanvasText; text-align: center; }
dialog img { width: min(90vw, 90vh); max-height: 80vh; object-fit: contain; }
dialog::backdrop { background: #000c; }
"""
SCRIPT = """
const cards = [...document.querySelectorAll('button')], view = document.querySelector('dialog');
const large = view.querySelector('img'), told = view.querySelector('p');
let now = 0;
function show(i) {
  now = (i + cards.length) % cards.length;
  large.src = cards[now].querySelector('img').src;
  told.textContent = cards[now].parentNode.querySelector('figcaption').textContent;
  if (!view.open) view.showModal();
}
cards.forEach((card, i) => card.onclick = () => show(i));
view.onclick = () => view.close();
view.onclose = () => cards[now].focus();
view.onkeydown = e => {
  if (e.key === 'ArrowRight') show(now + 1);
  if (e.key === 'ArrowLeft') show(now - 1);
};
"""


class Sheet:
    """A contact sheet, written piece by piece (UTF-8) as the results come."""

    def __init__(self, write: Callable[[bytes], None], title: str) -> None:
        self._write = write
        self._shown = 0
        self._put(beginning(one_line(title), STYLE))

    def add(self, heading: str, records: list[Record]) -> None:
        """One result list, or the records of one group."""
        self._put((f"<h2>{escaped(one_line(heading))}</h2>" if heading else "") + "<section>")
        for record in records:
            self._put(self._figure(record))
        self._put("</section>" if records else "nothing found</section>")

    def end(self) -> None:
        self._put(f'<dialog><img alt=""><p></p></dialog><script>{SCRIPT}</script></html>\n')

    def _put(self, text: str) -> None:
        self._write(text.encode(errors="backslashreplace"))

    def _figure(self, record: Record) -> str:
        image = record.get("image")
        name = one_line(str(image or record.get("text") or record["id"]))
        if image is None:
            shown = f'<div class="none">{escaped(name)}</div>'
        elif self._shown == MOST_PICTURES:
            shown = f'<div class="none">the page holds {MOST_PICTURES} pictures</div>'
        else:
            shown = picture(image, PIXELS)
            if shown.startswith("<img"):
                self._shown += 1
                shown = f'<button aria-label="{escaped(name)}">{shown}</button>'
        told = [f"{record['rank']}."] if "rank" in record else []
        told += [f"{record[field]:.3f}" for field in ("score", "relative") if field in record]
        link = f'<a href="{escaped(_address(image))}">{escaped(name)}</a>' if isinstance(image, str) else escaped(name)
        return f"<figure>{shown}<figcaption>{' '.join(told)} {link}</figcaption></figure>"


def _address(image: str) -> str:
    return image if is_url(image) else "file://" + quote(os.fsencode(image))
