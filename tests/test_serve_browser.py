"""serve: the page in a real browser.

VLMKIT_SCREENSHOTS names a folder for pictures of it, AXE the axe.min.js of npm's axe-core.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import inside
import pytest
from browser import Browser, find_browser
from conftest import own_environment
from page_text import key_of, random_rows
from PIL import Image
from serving import Served

PAGES = {
    "grid": "/?q=fresh+coffee",
    "filters": "/?after=2019&q=a+cat",
    "picture": "/picture?id=the+coffee%2F..%2F%26id%3Dx&q=coffee",
    "gone": "/picture?id=GONE",
    "duplicates": "/duplicates",
    "chat": "/chat",
    "error": "/?after=June",
}
SIZES = {"wide": (1280, 900), "phone": (390, 844)}
# How far the page was shifted while it was loaded, and what is wider than the window.
SHIFTS = """new Promise(done => new PerformanceObserver(list => done(
    list.getEntries().reduce((sum, entry) => sum + entry.value, 0))).observe({type: 'layout-shift', buffered: true})
    || setTimeout(() => done(0), 300))"""
WIDE = "document.documentElement.scrollWidth - innerWidth"
# The texts whose contrast with what lies behind them is under 4.5.
CONTRAST = """(() => {
    const channels = color => color.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => [r, g, b].map(value => value / 255).map(value =>
        value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4)
        .reduce((sum, value, i) => sum + value * [.2126, .7152, .0722][i], 0);
    const behind = element => {
        for (; element; element = element.parentElement) {
            const color = channels(getComputedStyle(element).backgroundColor);
            if ((color[3] ?? 1) === 1) return color;
        }
        return [255, 255, 255];
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest('noscript')) continue;
        const [one, other] = [channels(getComputedStyle(element).color), behind(element)].map(luminance);
        const contrast = (Math.max(one, other) + .05) / (Math.min(one, other) + .05);
        if (contrast < 4.5) found.push(`${walker.currentNode.data.trim()} ${contrast.toFixed(2)}`);
    }
    return found;
})()"""
BROKEN = "[...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    find_browser()
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture
def look(browser: Browser) -> Iterator[Browser]:
    """The browser, which must come to nothing that its console calls an error."""
    browser.problems.clear()
    browser.look()
    yield browser
    assert browser.problems == []


@pytest.fixture(scope="module")
def many(album: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service over an index of 1,000 records with three pictures."""
    folder = tmp_path_factory.mktemp("many")
    images = [str(album / ("rocket.png", "coffee.png", "chelsea.png")[i % 3]) for i in range(1000)]
    environment = own_environment(folder / "home")
    inside.run(["index"], folder, environment, random_rows(images))
    service = Served(folder, environment)
    yield service
    service.end()


def focused(look: Browser) -> str:
    return look.run("document.activeElement.querySelector?.('.name')?.textContent ?? document.activeElement.tagName")


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_every_page_is_sound(look: Browser, page: Served, album: Path, size: str, dark: bool) -> None:
    look.look(*SIZES[size], dark=dark)
    for name, path in PAGES.items():
        look.open(page.url + path.replace("GONE", key_of(album, "gone.png")))
        assert look.run(SHIFTS) < 0.01, name
        assert look.run(WIDE) <= 0, name
        assert look.run(CONTRAST) == [], name
        assert look.run(BROKEN) == [], name
        assert look.run("document.querySelectorAll('h1').length") == 1, name
        if folder := os.environ.get("VLMKIT_SCREENSHOTS"):
            look.screenshot(Path(folder) / f"{name}-{size}-{'dark' if dark else 'light'}.png")


@pytest.mark.slow
def test_axe_finds_nothing(look: Browser, page: Served) -> None:
    if not (script := os.environ.get("AXE")):
        pytest.skip("no axe-core: AXE names the axe.min.js of npm's package")
    for dark in (False, True):
        look.look(dark=dark)
        for path in ("grid", "picture", "duplicates", "chat", "filters"):
            look.open(page.url + PAGES[path])
            look.run(Path(script).read_text() + ";0")
            wrong = look.run(
                "axe.run().then(found => found.violations.map(one => [one.id, one.nodes.map(n => n.html)]))"
            )
            assert wrong == [], (path, dark, wrong)


def test_the_keyboard_alone(look: Browser, page: Served) -> None:
    look.open(page.url)
    look.press("/")
    look.type("a rocket")
    with look.leaving():
        look.press("Enter")
    assert look.run("location.search") == "?q=a+rocket"
    look.press("ArrowDown")
    first = focused(look)
    assert first in ("rocket.png", "moved.png")
    look.press("ArrowRight")
    assert focused(look) == look.run("document.querySelectorAll('.name')[1].textContent") != first
    look.press("ArrowLeft")
    with look.leaving():
        look.press("Enter")
    assert look.run("document.querySelector('h1').textContent") == first
    with look.leaving():
        look.press("ArrowRight")
    assert look.run("document.querySelector('h1').textContent") != first
    with look.leaving():
        look.press("Escape")
    assert look.run("location.search") == "?q=a+rocket"


def test_focus_is_seen(look: Browser, page: Served) -> None:
    look.open(page.url)
    for _ in range(12):
        look.press("Tab")
        outline = look.run(
            "(at => getComputedStyle(at).outlineStyle !== 'none' || at.matches('input[type=file]')"
            " && getComputedStyle(at.parentElement).outlineStyle !== 'none')(document.activeElement)"
        )
        assert outline, look.run("document.activeElement.outerHTML")


def test_more_pictures_come_as_one_scrolls(look: Browser, many: Served) -> None:
    look.open(many.url)
    assert look.run("document.querySelectorAll('#results li').length") == 60
    end = 1000
    while (count := look.run("document.querySelectorAll('#results li').length")) < end:
        look.run("scrollTo(0, document.body.scrollHeight - innerHeight - 1000)")
        look.wait(f"document.querySelectorAll('#results li').length > {count} || !document.querySelector('.more')")
    assert count == end and look.run("document.querySelector('.more')") is None
    ids = look.run("[...document.querySelectorAll('#results .tile')].map(link => link.href)")
    assert len(set(ids)) == end
    assert look.run(SHIFTS) < 0.01
    loaded = look.run("[...document.querySelectorAll('#results img')].filter(image => image.complete).length")
    assert loaded < end  # what was scrolled past is not loaded


@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_search_by_a_picture(look: Browser, page: Served, album: Path, way: str) -> None:
    look.open(page.url)
    with look.leaving():
        if way == "choose":
            look.choose(".upload input", album / "rocket.png")
        else:
            look.run(f"""(async () => {{
                const blob = await (await fetch('/original?id={key_of(album, "rocket.png")}')).blob();
                const data = new DataTransfer();
                data.items.add(new File([blob], 'mine.png', {{type: 'image/png'}}));
                const more = {{bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data}};
                document.body.dispatchEvent(new {{drop: DragEvent, paste: ClipboardEvent}}['{way}']('{way}', more));
            }})()""")
    assert look.run("location.search").startswith("?image=")
    assert look.run("document.querySelector('.name').textContent") in ("rocket.png", "moved.png")


def test_a_picture_larger_than_a_request_is_made_smaller(look: Browser, page: Served, tmp_path: Path) -> None:
    Image.new("RGB", (4000, 3000), "blue").save(tmp_path / "large.bmp")
    assert (tmp_path / "large.bmp").stat().st_size > 32 << 20
    look.open(page.url)
    with look.leaving():
        look.choose(".upload input", tmp_path / "large.bmp")
    assert look.run("location.search").startswith("?image=")


def test_a_question_about_a_picture(look: Browser, page: Served, album: Path) -> None:
    look.open(f"{page.url}/picture?id={key_of(album, 'chelsea.png')}")
    picture = {"type": "image_url", "image_url": {"url": str(album / "chelsea.png")}}
    question = [{"role": "user", "content": [picture, {"type": "text", "text": "what is this?"}]}]
    expected = page.ask("/v1/chat/completions", messages=question)["choices"][0]["message"]["content"]
    look.run("document.querySelector('[name=question]').focus()")
    look.type("what is this?")
    look.press("Enter")
    answer = look.wait("!document.querySelector('.waiting') && document.querySelector('.assistant')?.textContent")
    assert answer == expected
    look.run("document.querySelector('[name=model]').innerHTML = '<option>none</option>'")
    look.type("and this?")
    look.press("Enter")
    assert "there is no model none here" in look.wait("document.querySelector('.message.error')?.textContent")


def test_an_answer_can_be_cancelled(look: Browser, page: Served, album: Path) -> None:
    """The service is held by a request whose answer never comes."""
    look.open(f"{page.url}/picture?id={key_of(album, 'chelsea.png')}")
    look.run("window.fetch = (_, {signal}) => new Promise((_, no) => signal.onabort = () => no(signal.reason))")
    look.run(
        "document.querySelector('[name=question]').value = 'what?'; document.querySelector('.line button').click()"
    )
    look.wait("!document.querySelector('.cancel').hidden")
    look.run("document.querySelector('.cancel').click()")
    assert look.wait("document.querySelector('.assistant')?.textContent") == "Cancelled."
    assert look.run("document.querySelector('.cancel').hidden")


def test_a_chat_with_pictures(look: Browser, page: Served, album: Path) -> None:
    look.open(f"{page.url}/chat")
    look.run("document.querySelector('.examples button').click()")
    look.choose(".composer [type=file]", album / "scan.tif", album / "panorama.png")
    look.wait("document.querySelectorAll('.attached li').length == 3")
    look.run("document.querySelectorAll('.attached .remove')[0].click()")
    look.run("document.querySelectorAll('.attached .remove')[1].click()")
    look.wait("document.querySelectorAll('.attached li').length == 1")
    look.run(
        "window.bodies = []; const was = fetch; window.fetch = (u, o) => (bodies.push(JSON.parse(o.body)), was(u, o))"
    )
    for text in ("what is this?", "what color is it?"):
        look.run("document.querySelector('textarea').focus()")
        look.type(text)
        look.press("Enter")
        look.wait("!document.querySelector('.waiting') && document.querySelector('.cancel').hidden")
    assert look.run("document.querySelectorAll('.message.assistant').length") == 2
    assert look.run("document.querySelectorAll('.message.error').length") == 0
    first, second = look.run("bodies")
    assert first["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/")
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    look.run("document.querySelector('.anew').click()")
    assert look.run("document.querySelectorAll('.message').length") == 0


def test_copies_are_chosen(look: Browser, page: Served) -> None:
    look.open(f"{page.url}/duplicates")
    with look.leaving():
        look.run("document.querySelector('main form button').click()")
    look.wait("document.querySelector('form.copies output')?.textContent")
    before = int(look.run("document.querySelector('output').textContent").split()[0])
    look.run("document.querySelector('[name=go]:checked').click()")
    assert int(look.run("document.querySelector('output').textContent").split()[0]) == before - 1


def test_the_token_is_asked_for(look: Browser, album: Path) -> None:
    service = Served(album.parent, own_environment(album.parent / "home"), "--token", "s3cret")
    look.open(f"{service.url}/?q=a+rocket")
    assert look.run("location.pathname") == "/login"
    look.type("s3cret")
    with look.leaving():
        look.press("Enter")
    assert look.run("location.search") == "?q=a+rocket" and look.run("document.cookie") == ""
    with look.leaving():
        look.run("document.querySelector('nav button').click()")
    assert look.run("location.pathname") == "/login"
    service.end()
