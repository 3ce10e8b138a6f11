"""ask beyond one answer: conversations, streaming, JSON by schema, principles. With small models of random weights."""

from pathlib import Path

import pexpect
import pytest
from conftest import SCRIPT
from helpers import jsonl, noise, records
from PIL import Image

from vlmkit.errors import VlmkitError
from vlmkit.generate.constitution import read_constitution
from vlmkit.models.load import load_chat_model
from vlmkit.models.types import Answer, Request, Sampling


@pytest.fixture(autouse=True)
def model(environment: dict[str, str], talking: Path) -> str:
    environment["VLMKIT_CHAT_MODEL"] = str(talking / "packed")
    return environment["VLMKIT_CHAT_MODEL"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, array in zip("ab", noise(2), strict=True):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture
def terminal(pictures: Path, environment: dict[str, str]):
    def start(*words: object) -> pexpect.spawn:
        return pexpect.spawn(
            str(SCRIPT), list(map(str, words)), cwd=pictures, env=environment | {"TERM": "dumb"}, timeout=120
        )

    return start


@pytest.mark.slow
def test_a_conversation_on_a_pipe(vlmkit, pictures: Path, model: str) -> None:
    said = "what color is it?\n/image b.png\nwhat changed?\n/save talk.jsonl\n/what\n/image none.png\n/quit\nnot read\n"
    done = vlmkit("ask", "a.png", "--chat", stdin=said.encode())
    first, second = done.stdout.decode().splitlines()
    assert first == vlmkit("ask", "a.png", "what color is it?").stdout.decode().strip()
    assert second == vlmkit("ask", "a.png", "b.png", "what changed?").stdout.decode().strip(), "both pictures count"
    reported = done.stderr.decode().splitlines()
    assert "answers single questions" in reported[0] and len(reported) == 3
    assert reported[1] == "vlmkit: unknown command /what: /help lists what there is" and "none.png" in reported[2]
    (row,) = records((pictures / "talk.jsonl").read_bytes())
    assert row["images"] == [str(pictures / "a.png"), str(pictures / "b.png")]
    assert row["conversations"] == [
        {"from": "human", "value": "<image>\nwhat color is it?"},
        {"from": "gpt", "value": first},
        {"from": "human", "value": "<image>\nwhat changed?"},
        {"from": "gpt", "value": second},
    ]
    assert row["answer_model"].startswith(f"{model}@")


def test_pictures_as_terminals_paste_them_and_the_system_text(vlmkit, pictures: Path) -> None:
    (pictures / "a.png").rename(pictures / "my photo.png")
    shown = "/image 'my photo.png'\nwhat?\n/image my\\ photo.png\nand?\n"
    said = f"/system be brief\n{shown}/save talk.jsonl\n/save talk.jsonl\n"
    done = vlmkit("ask", "--chat", stdin=said.encode())
    assert done.stderr.count(b"\n") == 1 and done.stdout.count(b"\n") == 2
    (row,) = records((pictures / "talk.jsonl").read_bytes())
    assert row["images"] == [str(pictures / "my photo.png")] * 2
    assert row["conversations"][0] == {"from": "system", "value": "be brief"}
    done = vlmkit("ask", "--chat", "my photo.png", "what?", stdin=b"/save talk.jsonl\n")
    assert b"talk.jsonl already exists" in done.stderr, "of another conversation"
    assert records((pictures / "talk.jsonl").read_bytes()) == [row]
    (again,) = records(vlmkit("ask", "talk.jsonl").stdout)
    plain = vlmkit("ask", "my photo.png", "my photo.png", "and?", "--system", "be brief").stdout.decode().strip()
    assert (again["question"], again["answer"]) == ("<image>\nand?", plain)


def test_the_first_question_may_come_with_the_command(vlmkit, pictures: Path) -> None:
    done = vlmkit("ask", "a.png", "what is it?", "--chat", stdin=b"/new\nwhat is it?\n")
    first, second = done.stdout.decode().splitlines()
    assert first == vlmkit("ask", "a.png", "what is it?").stdout.decode().strip()
    assert second == vlmkit("ask", "what is it?", stdin=b"").stdout.decode().strip(), "the picture is forgotten"


def test_a_conversation_in_a_terminal(terminal, environment: dict[str, str], tmp_path: Path) -> None:
    environment["XDG_STATE_HOME"] = str(tmp_path / "state")
    session = terminal("ask", "a.png", "--chat")
    session.expect("> ")
    session.sendline("what color is it?")
    session.expect_exact("what color is it?\r\n")
    session.expect(r"\S+.*\r\n> ")
    session.send("/hepl\x08\x08lp\n")  # edited, as in a shell
    session.expect_exact("/quit")
    session.expect("> ")
    session.sendintr()  # at the prompt: a new line
    session.expect("> ")
    session.send("\x1b[A\x1b[A\n")  # the last but one of the history
    session.expect_exact("what color is it?\r\n")
    session.expect(r"\S+.*\r\n> ")
    session.sendeof()
    session.expect(pexpect.EOF)
    session.close()
    assert session.exitstatus == 0
    kept = tmp_path / "state/vlmkit/chat"
    assert kept.read_text().splitlines()[:2] == ["what color is it?", "/help"] and kept.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_an_answer_streams_on_a_terminal(terminal, talking: Path, vlmkit) -> None:
    """Of a model of transformers, word after word; the words are those of the pipe."""
    trained = talking / "trained"
    words = ("ask", "a.png", "what is it?", "-m", trained, "--max-tokens", "12")
    plain = vlmkit(*words, "--no-stream").stdout.decode()
    session = terminal(*words)
    session.expect(pexpect.EOF)
    session.close()
    assert session.exitstatus == 0 and session.before.decode().split() == plain.split()
    assert plain.count("\n") == 1


def test_pieces_come_one_by_one(talking: Path) -> None:
    model = load_chat_model(str(talking / "trained"))
    request, sampling = Request("what is it?", [Image.fromarray(noise(1)[0])]), Sampling(12)
    said: list[str] = []
    answer = model.stream(request, sampling, said.append)
    assert isinstance(answer, Answer) and answer == model.answer([request], sampling)[0]
    assert "".join(said).strip() == answer.text


def test_statistics(vlmkit) -> None:
    (row,) = records(vlmkit("ask", "what is it?", "--stats", stdin=b"").stdout)
    assert row["ms"] > 0 and row["tokens"] >= 1 and row["finish"] in ("stop", "length")
    (row,) = records(vlmkit("ask", "what is it?", "--json", "--max-tokens", "1", stdin=b"").stdout)
    assert row["finish"] == "length" and "ms" not in row


@pytest.mark.slow
def test_a_reply_that_is_not_of_the_schema(vlmkit, pictures: Path) -> None:
    """This model knows no JSON; it is asked twice, and what it said is given as it is."""
    rows = records(vlmkit("ask", pictures, "what is it?", "--schema", "name, age int").stdout)
    assert [row["valid"] for row in rows] == [False, False] and all(row["answer"] for row in rows)
    assert "--schema: 'a-b' is neither" in vlmkit("ask", "a.png", "x", "--schema", "a-b", code=2).stderr.decode()


@pytest.mark.slow
def test_principles(vlmkit, pictures: Path) -> None:
    """This model gives no scores, so no revision is kept."""
    questions = jsonl(*[{"id": name, "image": f"{name}.png", "question": "what is it?"} for name in "ab"])
    done = vlmkit("ask", "--constitution", "default", "--pairs", "pairs.jsonl", "--max-tokens", "4", stdin=questions)
    for row in records(done.stdout):
        assert row["answer"] == " ".join(row["initial"].split()) and row["revised"]
        assert row["critique"].keys() == {"accuracy", "safety", "helpfulness", "privacy"}
        assert row["scores"]["initial"].keys() == {*row["critique"], "total"}
    assert (pictures / "pairs.jsonl").read_bytes() == b""


class Scripted:
    """A model that says what stands in a script: the reply to the first key that is in the prompt."""

    tasks = ("answer",)

    def __init__(self, script: dict[str, str]) -> None:
        self.script = script

    def answer(self, requests, sampling) -> list[Answer]:
        found = [next(said for key, said in self.script.items() if key in request.prompt) for request in requests]
        return [Answer(text, "stop", len(text.split())) for text in found]


SCORES = {
    "The answer was: a dog\nPrinciples of accuracy:\n- Say only what can be seen in the picture, or follows": "2",
    "The answer was: a dog": "6",
    "The answer was: a cat": "I give it 9 of 10.",
}


def test_the_better_answer_is_kept() -> None:
    from vlmkit.generate.constitution import answer_by_constitution

    constitution = read_constitution("default")
    script = {"Answer yes or no": "No, it is harmless.", "Say in one sentence": "It is no dog."}
    script |= {"Write a better": "a cat", **SCORES, "what is it?": "a dog"}
    (reply,) = answer_by_constitution(Scripted(script), [Request("what is it?")], Sampling(9), constitution)
    assert (reply.answer.text, reply.chosen, reply.rejected) == ("a cat", "a cat", "a dog")
    scores = reply.fields["scores"]
    assert scores["initial"]["accuracy"] == 0.2 and scores["revised"]["total"] == pytest.approx(0.9)
    assert scores["initial"]["total"] == pytest.approx(0.4 * 0.2 + 0.6 * 0.6)
    script["The answer was: a cat"] = "1"
    (reply,) = answer_by_constitution(Scripted(script), [Request("what is it?")], Sampling(9), constitution)
    assert (reply.answer.text, reply.chosen, reply.rejected) == ("a dog", "a dog", "a cat")
    script["Answer yes or no"] = "Yes, it shows an address."
    (reply,) = answer_by_constitution(Scripted(script), [Request("what is it?")], Sampling(9), constitution)
    assert reply.fields == {"declined": "unsafe"} and "shows an address" in reply.answer.text and not reply.chosen


@pytest.mark.parametrize(
    "text", ["x", "[gate]\na = 1", "[accuracy]\nweight = 1", "", "[a]\nweight = 0\nprinciples = ['x']", "a = 1"]
)
def test_what_is_no_constitution(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(VlmkitError, match="--constitution"):
        read_constitution(str(tmp_path / "c.toml"))


def test_flags_that_exclude_each_other(vlmkit, pictures: Path) -> None:
    def refused(*words: str) -> str:
        return vlmkit("ask", "a.png", "what?", *words, code=2).stderr.decode()

    assert "--schema excludes --ocr" in refused("--schema", "a", "--ocr")
    assert "--draw requires --boxes" in refused("--draw", "x.png")
    assert "does not name a picture" in refused("--boxes", "--draw", "x.txt")
    assert "--pairs requires --constitution" in refused("--pairs", "x.jsonl")
    assert "--json cannot be combined with --chat" in refused("--chat", "--json")
    assert "-o cannot be combined with --chat" in refused("--chat", "-o", "x.jsonl")
    assert b"cannot find boxes" in vlmkit("caption", "a.png", "--boxes", code=2).stderr
    assert "cannot find boxes" in refused("--boxes") and "cannot read text" in refused("--ocr", "-m", "mini")


@pytest.mark.slow
def test_closed_standard_streams(shell, pictures: Path) -> None:
    """A closed standard output is an error; a closed standard input ends a conversation before it begins."""
    done = shell("vlmkit ask a.png 'what is it?' >&-")
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"defect" not in done.stderr, done.stderr
    done = shell("vlmkit ask --chat a.png <&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
