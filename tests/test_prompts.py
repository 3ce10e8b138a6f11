"""The prompts of vlmkit-prompts(7), run as they stand against an endpoint that is asked what it got."""

import csv
import io
import json
import shlex
import sys
from pathlib import Path

import pytest
from helpers import picture
from hosted import Hosted, layout, pictures, question
from pdfs import document

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "man"))
from prompts import PROMPTS, Prompt  # noqa: E402

from vlmkit.generate.schema import read_schema  # noqa: E402

QUESTIONS = ["Who signed it?", "When does it end?"]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the command lines name."""
    monkeypatch.chdir(tmp_path)
    for name in ("chart.png", "mockup.png", "photos/a.png"):
        picture(tmp_path / name, size=(56, 56))
    document(tmp_path / "form.pdf", "Name: Ada")
    document(tmp_path / "report.pdf", "one", "two", "three")
    (tmp_path / "invoices").mkdir()
    document(tmp_path / "invoices/a.pdf", "1", "2")
    document(tmp_path / "invoices/b.pdf", "3")
    (tmp_path / "questions.txt").write_text("\n".join(QUESTIONS))
    page = (ROOT / "man/vlmkit-prompts.md").read_text()
    points = page.partition("```\n")[2].partition("```")[0]
    (tmp_path / "points.json").write_text(points)
    (tmp_path / "controls.json").write_text(points.replace("series", "name").replace('"x"', '"kind"'))
    return tmp_path


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.job.lower().replace(" ", "-"))
def test_a_prompt_sends_what_it_says(vlmkit, hosted: Hosted, files: Path, prompt: Prompt) -> None:
    words = shlex.split(prompt.line)
    assert words[:2] == ["vlmkit", "ask"]
    vlmkit(*words[1:], "-m", "openai:tiny", "--base-url", hosted.url)
    firsts = [body for body in hosted.received if "Give nothing but the JSON." not in question(body)]
    assert sum(len(pictures(body)) for body in firsts) == prompt.pictures
    asked = QUESTIONS if "--questions" in words else [word for word in words[2:] if " " in word][:1]
    for body in firsts:
        assert any(one in layout(body["messages"][-1]) for one in asked) or "--ocr" in words
        if "--schema" in words:
            schema = read_schema(words[words.index("--schema") + 1])
            assert body["response_format"]["json_schema"]["schema"] == schema
        if "--max-tokens" in words:
            assert body["max_tokens"] == int(words[words.index("--max-tokens") + 1])
        if "--system" in words:
            assert body["messages"][0] == {"role": "system", "content": words[words.index("--system") + 1]}


ROWS = [{"a": "=1+1", "b": -5}, {"a": '-2,5 "x"\n<b>&', "b": None}, {"a": "-7", "b": 2.5}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": ["number", "null"]}}}


def test_answers_in_other_forms(vlmkit, hosted: Hosted, files: Path) -> None:
    from xml.etree import ElementTree

    model = ["-m", "openai:tiny", "--base-url", hosted.url]
    ask = [
        "ask",
        "chart.png",
        f"says {json.dumps(ROWS)}",
        *model,
        "--schema",
        json.dumps({"type": "array", "items": SCHEMA}),
    ]
    found = list(csv.reader(io.StringIO(vlmkit(*ask, "--format", "csv").stdout.decode())))
    assert found[0] == ["id", "question", "a", "b", "other"]
    assert [row[2:] for row in found[1:]] == [["'=1+1", "-5", ""], ['\'-2,5 "x"\n<b>&', "", ""], ["-7", "2.5", ""]]
    root = ElementTree.fromstring(vlmkit(*ask, "--format", "xml").stdout)
    assert [[item.findtext("a"), item.findtext("b")] for item in root[0]] == [
        ["=1+1", "-5"],
        ['-2,5 "x"\n<b>&', ""],
        ["-7", "2.5"],
    ]
    assert root[0].get("question") == f"says {json.dumps(ROWS)}"
    (row,) = json.loads(vlmkit(*ask, "--format", "json").stdout)
    assert row["answer"] == ROWS
    vlmkit(*ask, "-o", "x.csv")
    assert (files / "x.csv").read_text().startswith("id,question,a,b,other\n")
    assert b"cannot be combined" in vlmkit(*ask, "-o", "x.csv", "--json", code=2).stderr
    several = ["ask", "report.pdf", "--each", "what\x01?", *model]
    assert vlmkit(*several, "--format", "text").stdout == b"\n".join([b"heard: what\x01?\n"] * 3)
    root = ElementTree.fromstring(vlmkit(*several, "--format", "xml").stdout)
    assert [one.text for one in root] == ["heard: what\ufffd?"] * 3
    done = vlmkit("ask", "chart.png", "no schema?", *model, "--schema", "a", "--format", "csv")
    assert b"does not match the schema" in done.stderr
    assert list(csv.reader(io.StringIO(done.stdout.decode())))[1][1:] == ["no schema?", ""]
    captions = vlmkit("caption", "photos", *model, "--format", "csv").stdout.decode()
    assert captions == f"id,caption\n{files}/photos/a.png,A cup of coffee on a table.\n"
