"""--html, looked at in headless Chromium."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers import embedded, jsonl, picture, records

HOSTILE = ["<script>alert(1)</script>.png", '" onerror="x.png', "a'&amp;\n?#%20é.png"]


@pytest.fixture
def folder(vlmkit, tmp_path: Path) -> Path:
    """Indexed: red pictures with hostile names, one that is missing, one that is broken."""
    names = [str(picture(tmp_path / "<p>" / name.replace("/", "∕"), size=(900, 300))) for name in HOSTILE]
    (tmp_path / "broken.png").write_bytes(b"broken")
    names += [str(tmp_path / "broken.png"), "/missing.png"]
    vlmkit("index", stdin=jsonl(*(embedded(name, [1, i / 100]) for i, name in enumerate(names)), embedded("q", [1, 0])))
    return tmp_path


class Page(HTMLParser):
    """What a page is made of, with the attributes that may reach outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))


def test_one_page_that_asks_for_nothing(vlmkit, folder: Path) -> None:
    hits = records(vlmkit("search", "--like", "q", "--html", "s.html").stdout)
    text = (folder / "s.html").read_text()
    page = Page(text)
    assert len(hits) == 5 == sum(tag == "figure" for tag, _ in page.tags)
    sources = [found["src"] for tag, found in page.tags if tag == "img" and "src" in found]
    assert len(sources) == 3 and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any("onerror" in found for _, found in page.tags)
    links = [found["href"] for tag, found in page.tags if tag == "a"]
    assert all(re.fullmatch(r"file:///[\w/.%~-]+", link) for link in links) and len(links) == 5
    assert "no such file" in text and "not a picture that can be read" in text
    assert len(text) < 60_000 and "default-src 'none'" in text
    assert not list(folder.glob(".*part"))


def test_lists_and_groups_have_headings(vlmkit, folder: Path, photos: Path) -> None:
    vlmkit("search", "--duplicates", "--html", "groups.html")
    groups = (folder / "groups.html").read_text()
    assert "alike, " in groups and groups.count("<figure>") == 6
    vlmkit("index", "-i", "./p", stdin=vlmkit("embed", photos / "chelsea.png").stdout)
    vlmkit("search", "-i", "./p", "--queries", "-", "--html", "lists.html", stdin=b"a cat\n<b>\n")
    lists = (folder / "lists.html").read_text()
    assert "<h2>a cat</h2>" in lists and "<h2>&lt;b&gt;</h2>" in lists


def test_nothing_is_written_where_the_search_fails(vlmkit, folder: Path) -> None:
    (folder / "s.html").write_text("before")
    vlmkit("search", "--like", "nobody", "--html", "s.html", code=2)
    assert (folder / "s.html").read_text() == "before"


def test_in_a_browser(vlmkit, folder: Path, browse) -> None:
    """The large view opens and goes one to the right; nothing is fetched."""
    vlmkit("search", "--like", "q", "--html", "s.html")
    look = """
      document.querySelector('button').click();
      const view = document.querySelector('dialog');
      view.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}));
      const images = [...document.querySelectorAll('figure img')];
      document.title = [images.every(i => i.naturalWidth === 400 && i.naturalHeight === 133), view.open,
        view.querySelector('img').src === images[1].src, performance.getEntriesByType('resource').filter(
        e => !e.name.startsWith('data:')).length, document.querySelector('p').textContent.startsWith('2.')].join();"""
    assert browse(folder / "s.html", look) == "true,true,true,0,true"
