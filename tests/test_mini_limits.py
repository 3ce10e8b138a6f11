"""What mini does not know it says: confidence, "not sure", the line about its limits, refusals."""

import json
from pathlib import Path

import pexpect
import pytest
from conftest import SCRIPT
from helpers import jsonl, records
from PIL import Image
from test_mini_conversations import drawing

from vlmkit.models.chat.confidence import calibrated
from vlmkit.models.chat.language import foreign_words
from vlmkit.models.embedders.mini import open_tokenizer
from vlmkit.models.resolve import MINI_FOLDER

LIMITS = "vlmkit: mini knows people and dogs outdoors"
BETTER = "vlmkit download smolvlm-256m (513 MB), then -m smolvlm-256m"
SHAPE = "what shape is shown?"
HARD = "what is the name of the river?"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    drawing("circle", "red").save(tmp_path / "drawing.png")
    Image.effect_noise((80, 60), 90).convert("RGB").save(tmp_path / "noise.png")
    return tmp_path


@pytest.fixture
def terminal(pictures: Path, environment: dict[str, str]):
    """The lines that a command prints on a terminal, standard output and error."""

    def run(*words: object, send: str = "") -> list[str]:
        process = pexpect.spawn(
            str(SCRIPT), list(map(str, words)), cwd=pictures, env=environment | {"NO_COLOR": "1"}, timeout=120
        )
        if send:
            process.expect("> ")
            process.send(send)
        process.expect(pexpect.EOF)
        process.close()
        assert process.exitstatus == 0
        return process.before.decode().splitlines()

    return run


def test_on_a_terminal_an_answer_comes_with_the_limits_of_mini(terminal) -> None:
    answer, limits = terminal("ask", "drawing.png", SHAPE)
    assert answer == "circle" and limits.startswith(LIMITS) and limits.endswith(BETTER)
    caption, limits = terminal("caption", "drawing.png")
    assert caption.endswith(".") and limits.startswith(LIMITS)
    lines = terminal("caption", ".")
    assert sum(line.startswith(LIMITS) for line in lines) == 1, "once a run"
    assert terminal("ask", "drawing.png", SHAPE, "-q") == ["circle"]


def test_the_limits_are_dim_where_there_is_color(pictures: Path, environment: dict[str, str]) -> None:
    words = ["ask", "drawing.png", SHAPE]
    shown = {**environment, "TERM": "xterm-256color"}
    shown.pop("NO_COLOR", None)
    process = pexpect.spawn(str(SCRIPT), words, cwd=pictures, env=shown, timeout=120)
    process.expect(pexpect.EOF)
    assert f"\x1b[2m{LIMITS}" in process.before.decode()


def test_an_answer_that_mini_is_not_sure_of(terminal, vlmkit) -> None:
    unsure, limits = terminal("ask", "noise.png", HARD)
    assert unsure == "not sure" and limits.endswith("; --always prints the guess")
    guess, limits = terminal("ask", "noise.png", HARD, "--always")
    assert guess not in ("", "not sure") and limits.endswith(BETTER)
    assert vlmkit("ask", "noise.png", HARD).stdout.decode().strip() == guess, "a script gets the answer"
    (row,) = records(vlmkit("ask", "noise.png", HARD, "--json").stdout)
    assert row["answer"] == guess and row["confidence"] < 0.5
    assert guess in terminal("ask", "noise.png", HARD, "--json")[0]


def test_a_conversation_is_not_sure_either(terminal) -> None:
    said = f"{HARD}\n/new\nand what is it?\n/quit\n"
    lines = terminal("ask", "noise.png", "--chat", send=said)
    assert "not sure" in lines
    assert any("answers questions about pictures: show one with /image PATH" in line for line in lines)
    assert "not sure" not in terminal("ask", "noise.png", "--chat", "--always", send=f"{HARD}\n/quit\n")


def test_records_have_the_confidence(vlmkit, pictures: Path) -> None:
    rows = jsonl(*({"image": name, "question": SHAPE} for name in ("drawing.png", "noise.png")))
    first = vlmkit("ask", stdin=rows).stdout
    assert vlmkit("ask", stdin=rows).stdout == first, "same bytes"
    sure, unsure = (row["confidence"] for row in records(first))
    assert sure > 0.9 > unsure >= 0
    (row,) = records(vlmkit("caption", "drawing.png", "--json").stdout)
    assert 0 < row["confidence"] < 1


def test_calibration_is_monotone_and_stays_within_bounds() -> None:
    found = [calibrated(log_probability, -1.2, 0.9) for log_probability in (-50.0, -3.0, -0.5, -0.05, 0.0)]
    assert found == sorted(found) and 0 <= found[0] < 0.1 and 0.95 < found[-1] <= 1
    assert calibrated(-0.6931, 0.0, 1.0) == 0.5, "bias 0 and slope 1 leave a probability as it is"


def test_a_question_without_a_picture(vlmkit, pictures: Path) -> None:
    done = vlmkit("ask", "what is the capital of France?", code=2)
    assert b"answers questions about pictures" in done.stderr and BETTER.encode() in done.stderr
    rows = jsonl(
        {"image": "drawing.png", "question": SHAPE},
        {"id": "2", "image": "", "question": SHAPE},
        {"id": "3", "image": None, "question": SHAPE},
    )
    done = vlmkit("ask", stdin=rows)
    assert len(records(done.stdout)) == 3
    assert done.stderr == b"vlmkit: 2 of 3 answers were guessed from words alone: name a picture in each record\n"
    picture = (pictures / "drawing.png").read_bytes()
    assert vlmkit("ask", SHAPE, stdin=picture).stdout == b"circle\n", "it has a picture, on standard input"


def test_other_languages_are_refused(vlmkit, pictures: Path) -> None:
    done = vlmkit("ask", "drawing.png", "Welche Farbe hat der Kreis?", code=2)
    assert b"not in English that the model knows: it lacks welche, farbe" in done.stderr
    assert b"-m Qwen/Qwen2.5-VL-3B-Instruct" in done.stderr and done.stdout == b""
    rows = jsonl({"id": "1", "image": "drawing.png", "question": SHAPE}, {"id": "2", "question": "これは何ですか?"})
    done = vlmkit("ask", stdin=rows, code=3)
    assert [row["id"] for row in records(done.stdout)] == ["1"] and "これは何ですか".encode() in done.stderr


@pytest.mark.parametrize(
    ("question", "foreign"),
    [
        ("what color is the dog?", ""),
        ("Is the Chihuahua on a skateboard?", ""),
        ("who is Schopenhauer?", ""),
        ("PlayStation or Xbox?", ""),
        ("is there a café?", ""),
        ("is that a 🐕?", ""),
        ("2 + 2 = ?", ""),
        ("¿De qué color es el perro?", "¿ qué perro"),
        ("Combien de personnes sont sur la photo ?", "combien personnes"),
        ("Quante persone ci sono?", "quante persone sono"),
        ("Сколько людей?", "сколько людей"),
        ("यह क्या है?", "यह क्या है"),
    ],
)
def test_only_what_is_certain_is_foreign(question: str, foreign: str) -> None:
    own, english = (open_tokenizer(MINI_FOLDER / name) for name in ("talk-tokenizer.json", "tokenizer.json"))
    found = foreign_words(question, own, english)
    assert set(foreign.split()) <= set(found) and bool(found) == bool(foreign)


def test_sidecars_of_mini_have_to_be_confirmed(vlmkit, pictures: Path) -> None:
    done = vlmkit("caption", "drawing.png", "--sidecar", code=2)
    assert b"are guesses" in done.stderr and b"pass --yes" in done.stderr and BETTER.encode() in done.stderr
    assert not (pictures / "drawing.txt").exists()
    vlmkit("caption", "drawing.png", "--sidecar", "--yes")
    assert (pictures / "drawing.txt").read_text().strip()
    assert b"--yes requires --sidecar" in vlmkit("caption", "drawing.png", "--yes", code=2).stderr


def test_the_better_model_is_in_the_catalog(vlmkit) -> None:
    (entry,) = [row for row in records(vlmkit("download", "--list", "--json").stdout) if row["name"] == "smolvlm-256m"]
    assert f"{entry['bytes'] / 1e6:.0f} MB" in BETTER and {"caption", "ask"} <= set(entry["used_by"])


def test_card_and_manual_tell_what_was_measured() -> None:
    figures = json.loads((MINI_FOLDER / "talk.json").read_bytes())["figures"]
    card = (MINI_FOLDER / "TALK_CARD.md").read_text()
    manual = (MINI_FOLDER.parents[2] / "man/vlmkit-models.md").read_text()
    for name in ("easy_vqa", "daquar", "flickr"):
        exact, answered, right = (
            f"{figures[f'{name}_{what}']:.1%}" for what in ("exact", "answered", "answered_exact")
        )
        assert f"| {answered} | {right} |" in card and exact in card
        assert f"| {exact} | {answered} | {right} |" in manual


def test_a_caption_that_begins_in_another_language_is_refused(vlmkit, pictures: Path) -> None:
    told = vlmkit("caption", "drawing.png", "--prompt", "Das Bild zeigt", code=2).stderr
    assert b"how the text begins is not in English that the model knows: it lacks das, bild, zeigt" in told
    for beginning in ("This image shows", "Photo of", "Alt:", "Rex and Anna"):
        assert vlmkit("caption", "drawing.png", "--prompt", beginning).stdout.startswith(beginning.encode())
