"""serve: the page over an index, as what a browser is sent. test_serve_browser looks at it in a real one."""

import io
import os
import re
import socket
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import quote, urlencode

import inside
import pytest
from conftest import own_environment
from page_text import HTML, key_of, names, random_rows, text
from PIL import Image
from serving import Served


@pytest.fixture(scope="module")
def locked(album: Path) -> Iterator[Served]:
    service = Served(album.parent, own_environment(album.parent / "home"), "--token", "s3cret")
    yield service
    service.end()


def test_without_a_query_the_newest_come_first(page: Served) -> None:
    shown = names(text(page, "/"))
    assert len(shown) == 9 and shown[-2:] == ["coffee.png", "rocket.png"]


def test_a_search_is_a_link(page: Served, album: Path) -> None:
    html = text(page, "/", q="a rocket")
    assert set(names(html)[:2]) == {"rocket.png", "moved.png"} and 'value="a rocket"' in html
    found = page.ask("/v1/search", query="a rocket", k=9)["data"]
    assert names(html) == [os.path.basename(hit["image"]) for hit in found]
    like = text(page, "/", like=album / "rocket.png")
    assert "rocket.png" not in names(like) and names(like)[0] == "moved.png"
    assert names(text(page, "/", q="a rocket", minus="a rocket at night"))[0] not in ("rocket.png", "moved.png")
    assert len(names(text(page, "/", q="a rocket", least=str(found[1]["score"])))) == 2


def test_words_of_records(page: Served) -> None:
    found = page.ask("/v1/search", query="espresso day", by="words")["data"]
    assert [(hit["match_line"], "score" in hit) for hit in found] == [("ESPRESSO", False)]
    html = text(page, "/", q="espresso", by="words")
    assert names(html) == ["coffee.png"] and "<option selected>words</option>" in html
    both = page.ask("/v1/search", query="espresso", k=2)["data"]
    assert both[0]["match_field"] == "ocr" and -1 < both[0]["score"] < 1 and "match_line" not in both[1]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"after": "2024-06-30", "before": "2024-06-30"}, ["coffee.png"]),
        ({"before": "2019"}, ["rocket.png"]),
        ({"before": "2018-12"}, []),
        ({"after": "2019-01", "before": "2024-06"}, ["coffee.png", "rocket.png"]),
        ({"camera": "Kodak <b>"}, ["coffee.png"]),
        ({"near": "48.21,16.4"}, ["coffee.png"]),
        ({"near": "-33,151", "within": "200"}, ["rocket.png"]),
        ({"near": "0,-179.9", "within": "20"}, []),
        ({"path": "album/pano"}, ["panorama.png"]),
        ({"path": "*.tif"}, ["scan.tif"]),
        ({"where": ["width=4000", "height<100"]}, ["panorama.png"]),
        ({"where": "ocr~*fresh*", "q": "a cat"}, ["coffee.png"]),
    ],
)
def test_filters(page: Served, parameters: dict, expected: list[str]) -> None:
    html = text(page, "/", **parameters)
    assert names(html) == expected
    assert ("Nothing found" in html) == (not expected)


@pytest.mark.parametrize(
    "parameters",
    [
        {"after": "June"},
        {"before": "2024-02-30"},
        {"after": "0"},
        {"near": "north"},
        {"near": "91,0"},
        {"near": "1,1", "within": "nan"},
        {"least": "much", "q": "a"},
        {"where": "nonsense"},
        {"where": "colour=red"},
        {"start": "-1"},
        {"start": "9" * 400},
    ],
)
def test_what_is_wrong_is_said_on_a_page(page: Served, parameters: dict) -> None:
    assert "<h1>" in text(page, "/", 400, **parameters)


def test_nothing_of_a_record_is_html(page: Served) -> None:
    for html in (text(page, "/", q="fresh coffee"), text(page, "/picture", id="the coffee/../&id=x", q="coffee")):
        assert "<script>alert" not in html and "<img src=x" not in html
        assert "<mark>coffee</mark>" in html
    assert "<mark>fresh</mark>" in text(page, "/picture", id="the coffee/../&id=x", q="Fresh")


def test_a_picture_has_its_facts_and_neighbours(page: Served, album: Path) -> None:
    html = unescape(text(page, "/picture", id="the coffee/../&id=x"))
    for fact in ("30 June 2024, 12:00", "Kodak <b>", "600 × 400 pixels", "48.20000, 16.37000", "ESPRESSO\nfresh"):
        assert fact in html
    assert str(album) in html
    assert len(names(html)) == 8 and 'data-picture="the coffee/../&id=x"' in html
    assert "Similar pictures" in html


def test_pictures_in_all_sizes(page: Served, album: Path) -> None:
    for name, size in (("scan.tif", (451, 300)), ("panorama.png", (720, 40))):
        small = page.get(f"/thumbnail?id={key_of(album, name)}")
        assert small.headers["content-type"] == "image/jpeg"
        image = Image.open(io.BytesIO(small.content))
        assert max(image.size) <= 2 * min(image.size) and min(image.size) <= 360
        large = Image.open(io.BytesIO(page.get(f"/large?id={key_of(album, name)}").content))
        assert abs(large.width / large.height - size[0] / size[1]) < 90


def test_headers_of_pictures(page: Served, album: Path) -> None:
    path = f"/thumbnail?id={key_of(album, 'rocket.png')}"
    first = page.get(path)
    assert first.headers["cache-control"] == "private, no-cache"
    again = page.get(path, If_None_Match=first.headers["etag"])
    assert again.status_code == 304 and again.content == b""
    assert "max-age" in page.get(f"{path}&v=1").headers["cache-control"]
    head = page.client.head(path)
    assert head.status_code == 200 and head.headers["content-length"] == str(len(first.content)) and not head.content


def test_originals_and_their_parts(page: Served, album: Path) -> None:
    path, data = f"/original?id={key_of(album, 'rocket.png')}", (album / "rocket.png").read_bytes()
    whole = page.get(path)
    assert whole.content == data and whole.headers["content-type"] == "image/png"
    assert whole.headers["accept-ranges"] == "bytes" and "sandbox" in whole.headers["content-security-policy"]
    etag = whole.headers["etag"]
    assert page.get(path, If_None_Match=etag).status_code == 304
    parts = {"0-9": data[:10], f"{len(data) - 5}-": data[-5:], "-7": data[-7:], "5-5": data[5:6]}
    for asked, expected in parts.items():
        part = page.get(path, Range=f"bytes={asked}")
        assert part.status_code == 206 and part.content == expected
    assert part.headers["content-range"] == f"bytes 5-5/{len(data)}"
    refused = page.get(path, Range=f"bytes={len(data)}-")
    assert refused.status_code == 416 and refused.headers["content-range"] == f"bytes */{len(data)}"
    for unknown in ("bytes=9-3", "lines=1-2", "bytes=0-1,3-4", "bytes=-"):
        assert page.get(path, Range=unknown).status_code == 200
    assert page.get(path, Range="bytes=0-1", If_Range='"other"').status_code == 200
    scan = page.get(f"/original?id={key_of(album, 'scan.tif')}")
    assert scan.headers["content-type"] == "application/octet-stream"
    assert scan.headers["content-disposition"] == "attachment; filename*=UTF-8''scan.tif"


@pytest.mark.parametrize("path", ["/thumbnail", "/large", "/original", "/picture"])
def test_only_what_the_index_has_is_sent(page: Served, album: Path, path: str) -> None:
    around = f"{album}/../album/rocket.png"
    for key in ("/etc/passwd", "../../etc/passwd", around, f"file://{album}/rocket.png", "\0", ""):
        assert page.get(f"{path}?{urlencode({'id': key})}").status_code == 404
    assert page.get(path).status_code == 404


@pytest.mark.parametrize("name", ["gone.png", "moved.png"])
def test_a_file_that_became_another_is_not_sent(page: Served, album: Path, name: str) -> None:
    """moved.png is a link to /etc/passwd by now."""
    for path in ("/thumbnail", "/large", "/original"):
        answer = page.get(f"{path}?id={key_of(album, name)}")
        assert answer.status_code == 404 and b"root:" not in answer.content
    assert page.get(f"/thumbnail?id={key_of(album, name)}").headers["content-type"] == "image/svg+xml"
    assert page.get(f"/picture?id={key_of(album, name)}").status_code == 200


def test_a_folder_or_a_pipe_in_place_of_a_picture(page: Served, album: Path) -> None:
    target = album / "panorama.png"
    kept = target.read_bytes()
    for make in (os.mkdir, os.mkfifo):
        target.unlink()
        make(target)
        assert page.get(f"/original?id={key_of(album, 'panorama.png')}").status_code == 404
        os.rmdir(target) if target.is_dir() else target.unlink()
        target.write_bytes(kept)


def test_thumbnails_are_kept_up_to_a_limit(album: Path, tmp_path: Path) -> None:
    from vlmkit.io.sources import open_source
    from vlmkit.serve.page.thumbnails import Thumbnails, etag_of

    cache = Thumbnails(tmp_path / "cache", 60_000)
    for name in ("rocket.png", "coffee.png", "chelsea.png"):
        source = open_source(str(album / name))
        key = etag_of(str(album / name), source, "thumbnail")
        assert cache.get(key, source, "thumbnail") == cache.get(key, source, "thumbnail")
    kept = [path.stat().st_size for path in (tmp_path / "cache").rglob("*.jpg")]
    assert kept and sum(kept) <= 60_000
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".jpg"] == []


def test_search_by_a_picture_needs_no_script(page: Served, album: Path) -> None:
    files = {"picture": ("mine.tif", (album / "scan.tif").read_bytes(), "image/tiff")}
    answer = page.client.post("/upload", files=files)
    assert answer.status_code == 303 and answer.headers["location"].startswith("/?image=")
    html = text(page, answer.headers["location"])
    assert set(names(html)[:2]) <= {"scan.tif", "chelsea.png", "cat's $(touch owned)\n copy.png"}
    shown = re.search(r"/upload\?name=\w+", html)[0]
    assert page.get(shown).headers["content-type"] == "image/jpeg"
    both = text(page, answer.headers["location"] + "&q=a+rocket")
    assert len(names(both)) == 9
    text(page, "/?image=0123", 404)
    for wrong in ({"picture": ("a.png", b"no picture")}, {"picture": ("a.png", b"")}, {"other": ("a.png", b"")}):
        assert page.client.post("/upload", files=wrong).status_code == 400
    assert page.client.post("/upload", content=b"nonsense").status_code == 400


def test_the_chat_offers_examples(page: Served) -> None:
    html = text(page, "/chat")
    assert html.count('<button type="button" data-picture') == 8 and "<option>mini</option>" in html
    assert 'data-picture="the coffee/../&amp;id=x"' in text(page, "/chat", id="the coffee/../&id=x")
    text(page, "/chat", 404, id="/etc/passwd")


def test_the_files_of_the_page(page: Served) -> None:
    for name, kind in (("page.js", "text/javascript"), ("page.css", "text/css"), ("icon.svg", "image/svg+xml")):
        (url,) = set(re.findall(rf'"(/static/{name}\?v=\w+)"', text(page, "/")))
        answer = page.get(url)
        assert answer.headers["content-type"].startswith(kind) and "immutable" in answer.headers["cache-control"]
        assert page.get(f"/static/{name}", If_None_Match=answer.headers["etag"]).status_code == 304
    for path in ("/static/../__init__.py", "/static/nothing.js", "/static/..%2f__init__.py"):
        assert page.get(path).status_code == 404


def test_no_index_is_told_kindly(tmp_path: Path) -> None:
    service = Served(tmp_path, own_environment(tmp_path))
    for path in ("/", "/duplicates"):
        assert "vlmkit embed ~/Pictures | vlmkit index" in text(service, path, 404)
    text(service, "/chat")
    service.end()


def test_a_browser_is_asked_for_the_token_once(locked: Served) -> None:
    asked = locked.get("/?q=a+cat", **HTML)
    assert asked.status_code == 303 and asked.headers["location"] == "/login?next=/%3Fq%3Da%2Bcat"
    assert locked.get("/").status_code == 401
    assert 'value="/?q=a+cat"' in text(locked, asked.headers["location"])
    refused = locked.client.post("/login", data={"token": "wrong", "next": "/"}, headers=HTML)
    assert refused.status_code == 401 and "set-cookie" not in refused.headers
    entered = locked.client.post("/login", data={"token": "s3cret", "next": "/?q=a+cat"})
    assert entered.status_code == 303 and entered.headers["location"] == "/?q=a+cat"
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "s3cret" not in cookie
    assert len(names(text(locked, "/?q=a+cat"))) == 9  # by the cookie
    named = {"Origin": locked.url}
    question = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    assert locked.post("/v1/chat/completions", question, **named).status_code == 200
    assert locked.post("/v1/chat/completions", question).status_code == 401  # a cookie alone sends nothing
    assert locked.post("/v1/chat/completions", question, Origin="http://evil.example").status_code == 403
    assert locked.post("/logout", b"", **named).status_code == 303
    locked.client.cookies.clear()
    assert locked.get("/").status_code == 401


def test_a_first_visit_by_url_leaves_no_token_in_it(locked: Served) -> None:
    locked.client.cookies.clear()
    targets = {"/chat": "/chat", "//evil.example": "/", "https://evil.example": "/", "/\\evil": "/"}
    for target, expected in targets.items():
        entered = locked.get(f"/login?token=s3cret&next={quote(target)}")
        assert entered.status_code == 303 and entered.headers["location"] == expected
    locked.client.cookies.clear()
    assert locked.get("/login?token=wrong", **HTML).status_code == 401
    for value in ("", "a", "vlmkit-0=1", 'vlmkit-"='):
        assert locked.get("/", Cookie=value).status_code == 401


def test_posts_of_other_pages_are_refused(page: Served) -> None:
    for path in ("/upload", "/duplicates", "/duplicates/stop", "/login", "/logout"):
        assert page.post(path, b"threshold=0.9", Origin="http://localhost:1").status_code == 403


def test_an_index_that_changes_is_shown_as_it_is(album: Path, tmp_path: Path) -> None:
    home = own_environment(tmp_path / "home")
    rows = inside.run(["embed", str(album / "rocket.png"), str(album / "coffee.png")], tmp_path, home, b"").stdout
    first, second = rows.splitlines(keepends=True)
    inside.run(["index"], tmp_path, home, first)
    service = Served(tmp_path, home)
    assert names(text(service, "/")) == ["rocket.png"]
    inside.run(["index"], tmp_path, home, second)
    assert len(names(text(service, "/"))) == 2
    inside.run(["index", "--remove", str(album / "rocket.png")], tmp_path, home, b"")
    assert names(text(service, "/")) == ["coffee.png"]
    service.end()


def test_many_pictures_come_in_pages(tmp_path: Path) -> None:
    home = own_environment(tmp_path / "home")
    inside.run(["index"], tmp_path, home, random_rows([f"/nowhere/{i:03}.jpg" for i in range(150)]))
    service = Served(tmp_path, home)
    for query in ("/", "/?like=000"):
        found, following = [], query
        while following:
            html = text(service, following)
            found += names(html)
            link = re.search(r'rel="next" href="([^"]+)"', html)
            following = unescape(link[1]) if link else None
        expected = 150 if query == "/" else 149
        assert len(found) == len(set(found)) == expected
    assert names(text(service, "/"))[:2] == ["149.jpg", "148.jpg"]
    service.end()


def test_raw_paths(page: Served) -> None:
    for path in (b"/thumbnail?id=%00", b"/thumbnail?id=%ff%fe", b"/picture?id=" + b"a" * 9000, b"/?q=%ff", b"/?q=%00"):
        with socket.create_connection(("127.0.0.1", page.port), 20) as connection:
            connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            status = connection.recv(65536).split(b" ", 2)[1]
        assert status in (b"200", b"404"), (path[:30], status)


def test_the_interface_searches_by_place(page: Served) -> None:
    (row,) = page.ask("/v1/search", near="48.21,16.4,5")["data"]
    assert row["id"] == "the coffee/../&id=x" and row["rank"] == 1 and row["distance"] < 5 and "score" not in row
    (row,) = page.ask("/v1/search", near="48.21,16.4,5", query="a cup")["data"]
    assert row["id"] == "the coffee/../&id=x" and row["distance"] < 5 and row["score"]
    told = page.ask("/v1/search", near="0,-179.9,20")
    assert told["data"] == [] and "the nearest of" in told["warnings"][0]
    assert page.error(400, "/v1/search", {"near": "91,0,1"})["param"] == "near"
