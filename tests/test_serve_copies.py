"""serve: duplicates side by side, and the script that moves the chosen ones."""

import os
import re
import shutil
import subprocess
import time
from html import unescape
from pathlib import Path

from conftest import own_environment
from page_text import text
from serving import Served


def wait_for_copies(page: Served) -> str:
    end = time.monotonic() + 60
    while "data-running" in (html := text(page, "/duplicates")):
        assert time.monotonic() < end
        time.sleep(0.2)
    return html


def test_copies_side_by_side_become_a_script(page: Served, album: Path, tmp_path: Path) -> None:
    assert "Look for duplicates" in text(page, "/duplicates")
    assert page.client.post("/duplicates", data={"threshold": "2"}).status_code == 400
    assert page.client.post("/duplicates", data={"threshold": "0.95"}).status_code == 303
    html = wait_for_copies(page)
    groups = re.findall(r"<fieldset.*?</fieldset>", html, re.DOTALL)
    (group,) = (group for group in groups if "chelsea.png" in group)
    paths = [unescape(path) for path in re.findall(r'class="path">(.*?)</span>', group, re.DOTALL)]
    assert sorted(map(os.path.basename, paths)) == sorted(
        ["chelsea.png", "scan.tif", "cat's $(touch owned)\n copy.png", '-rf "small".jpg']
    )
    ticked = re.findall(r'value="(\d+\.\d+)"[^>]*checked', group)
    assert len(ticked) == 3
    search = re.search(r'name="search" value="(\d+)"', html)[1]
    form = {"search": search, "go": ticked, "way": "move"}
    script = page.client.post("/duplicates/script", data=form)
    assert script.headers["content-disposition"] == 'attachment; filename="copies.sh"'
    assert sorted(os.listdir(album)) == sorted({*os.listdir(album), *map(os.path.basename, paths)})  # nothing went
    (tmp_path / "run.sh").write_bytes(script.content)
    shutil.copytree(album, tmp_path / "kept", symlinks=True)
    copied = subprocess.run(["sh", "run.sh", "went"], cwd=tmp_path, capture_output=True, text=True)
    assert copied.returncode == 0, copied.stderr
    try:
        assert not (tmp_path / "owned").exists()
        assert sorted(name.partition("-")[2] for name in os.listdir(tmp_path / "went")) == sorted(
            map(os.path.basename, paths[1:])
        )
        assert [os.path.exists(path) for path in paths] == [True, False, False, False]
        again = subprocess.run(["sh", "run.sh", "went"], cwd=tmp_path, capture_output=True, text=True)
        assert again.returncode == 1 and again.stderr.count("left alone") == 3
    finally:
        for path in paths[1:]:
            (tmp_path / "kept" / os.path.basename(path)).replace(path)


def test_what_a_script_is_not_made_for(page: Served) -> None:
    page.client.post("/duplicates", data={"threshold": "0.95"})
    html = wait_for_copies(page)
    search = re.search(r'name="search" value="(\d+)"', html)[1]
    post = lambda **form: page.client.post("/duplicates/script", data=form).status_code  # noqa: E731
    assert post(search=search, go=["0.0", "0.1", "0.2", "0.3"]) == 400  # nothing would stay
    assert post(search=search) == 400
    assert post(search=search, go=["7.0"]) == post(search=search, go=["0"]) == 400
    assert post(search="999", go=["0.1"]) == 409
    assert post(search=search, all="1", way="list") == 400  # a name has a line break
    assert post(search=search, all="1", way="trash") == 200


def test_a_search_for_copies_can_be_ended(page: Served) -> None:
    page.client.post("/duplicates", data={"threshold": "0.9", "path": "album"})
    assert "data-running" in text(page, "/duplicates")
    page.client.post("/duplicates/stop")
    assert "Look for duplicates" in text(page, "/duplicates")


def test_a_search_for_copies_ends_with_the_service(album: Path) -> None:
    service = Served(album.parent, own_environment(album.parent / "home"))
    service.client.post("/duplicates", data={"threshold": "0.9"})
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children")
    end = time.monotonic() + 30
    while not (started := children.read_text().split()):
        assert time.monotonic() < end
        time.sleep(0.05)
    service.end()
    while any(Path(f"/proc/{child}").exists() for child in started):
        assert time.monotonic() < end
        time.sleep(0.05)
