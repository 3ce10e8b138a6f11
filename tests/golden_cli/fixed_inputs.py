"""The inputs of all cases: pictures drawn from formulas, tars, lists and records, with fixed times."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

TIME = 1_600_000_000
COLORS = ["red", "green", "blue", "black", "white", "yellow"]
TEN = ["red"] * 7 + ["dark red"] * 3


def build(folder: Path) -> None:
    """All inputs but the models, in `folder`."""
    _photos(folder / "photos")
    _mixed(folder)
    _lists(folder)
    _shard(folder)
    _training(folder / "train")
    _predictions(folder / "eval")
    (folder / "empty").mkdir()


def fix_times(folder: Path) -> None:
    """Give every file below `folder` a time of its own, by the order of the names."""
    for number, path in enumerate(sorted(folder.rglob("*"))):
        os.utime(path, (TIME + number, TIME + number))


def _photos(folder: Path) -> None:
    (folder / "sub").mkdir(parents=True)
    shape((96, 96), "white", "red", "ellipse").save(folder / "red circle.png")
    shape((96, 96), "white", "red", "ellipse").resize((120, 120)).save(folder / "sub/copy.png")
    shape((80, 64), "gray", "blue", "rectangle").save(folder / "square.png")
    clouds(1, (120, 90)).save(folder / "café.jpg", quality=90)
    clouds(2, (200, 50)).save(folder / "wide.bmp")
    turned = Image.Exif()
    turned[0x0112] = 6
    clouds(3, (80, 40)).save(folder / "sub/turned.jpg", quality=90, exif=turned)
    clear = shape((64, 64), "green", "yellow", "ellipse")
    clear.putalpha(Image.linear_gradient("L").resize((64, 64)))
    clear.save(folder / "clear.png")
    frames = [shape((48, 48), "black", color, "rectangle") for color in ("orange", "purple")]
    frames[0].save(folder / "pages.gif", save_all=True, append_images=frames[1:])
    shape((32, 32), "white", "black", "ellipse").save(folder / ".hidden.png")
    (folder / "notes.txt").write_text("no picture\n")


def shape(size: tuple[int, int], ground: str, color: str, kind: str) -> Image.Image:
    """A circle or a box in the middle of a picture."""
    image = Image.new("RGB", size, ground)
    width, height = size
    getattr(ImageDraw.Draw(image), kind)((width // 4, height // 4, 3 * width // 4, 3 * height // 4), fill=color)
    return image


def clouds(seed: int, size: tuple[int, int]) -> Image.Image:
    """Coloured clouds."""
    small = np.random.default_rng(seed).integers(256, size=(7, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def _mixed(folder: Path) -> None:
    """A good picture among bad ones."""
    mixed = folder / "mixed"
    mixed.mkdir()
    shape((64, 48), "cyan", "brown", "ellipse").save(mixed / "good.png")
    whole = io.BytesIO()
    clouds(4, (160, 120)).save(whole, "JPEG", quality=90)
    (mixed / "cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (mixed / "fake.png").write_text("this is text\n")
    (mixed / "empty.png").write_bytes(b"")


def _lists(folder: Path) -> None:
    pictures = ["photos/red circle.png", "photos/café.jpg", "photos/square.png"]
    rows = [
        {"id": f"r{number}", "image": image, "captions": [f"picture {number}", "a picture"], "category": kind, "n": 7}
        for number, (image, kind) in enumerate(zip(pictures, ("shape", "cloud", "shape"), strict=True))
    ]
    write(folder / "captioned.jsonl", rows)
    (folder / "array.json").write_text(json.dumps(rows, indent=1))
    asked = ["what color is it?", "is it a circle?", "how many squares are there?"]
    answers = [["red"] * 10, ["no"], ["1", "one"]]
    write(
        folder / "questions.jsonl",
        (
            {"id": f"q{number}", "image": image, "question": text, "answers": given, "category": text.split()[0]}
            for number, (image, text, given) in enumerate(zip(pictures, asked, answers, strict=True))
        ),
    )
    pair = {"id": "pair", "images": pictures[:2], "question": "what is different?"}
    turns = [("human", "<image>\nwhat is it?"), ("gpt", "a circle"), ("human", "which color?"), ("gpt", "red")]
    said = [{"from": who, "value": text} for who, text in turns]
    write(folder / "more.jsonl", [pair, {"id": "talk", "image": pictures[0], "conversations": said}])
    write(folder / "texts.jsonl", [{"id": "t1", "text": "a red circle"}, {"text": "clouds", "n": 2}, {"id": "t3"}])
    (folder / "bad.jsonl").write_text('{"id": "a", "image": "photos/square.png"}\n{"id": "b", \n[1]\n')
    (folder / "names.txt").write_text("".join(f"{name}\n" for name in [*pictures, "photos/missing.png"]))
    (folder / "queries.txt").write_text("a red circle\nclouds in the sky\n")
    (folder / "labels.txt").write_text("circle\nsquare\nsky\n")
    vectors = [[1, 0, 0], [0, 1, 0], [0.6, 0.8, 0], [0, 0.6, 0.8]]
    write(
        folder / "toy.jsonl",
        (
            {"id": f"v{number}", "n": number, "tags": ["a", "b"][: number % 3], "model": "toy@0123456789ab"}
            | {"about": {"name": f"x{number}"}, "embedding": vector}
            for number, vector in enumerate(vectors)
        ),
    )
    write(folder / "other.jsonl", [{"id": "o", "model": "other@ba9876543210", "embedding": [1, 0, 0]}])
    numbers = np.random.default_rng(0).standard_normal((400, 16)).round(4).tolist()
    write(
        folder / "many.jsonl",
        ({"id": f"m{i}", "model": "toy@0123456789ab", "embedding": row} for i, row in enumerate(numbers)),
    )
    (folder / "person.json").write_text(
        '{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}'
    )
    (folder / "rules.toml").write_text('[[principle]]\nname = "short"\ncritique = "Is it short?"\n')
    addresses = [{"url": f"http://127.0.0.1:PORT/{name}", "n": n} for n, name in enumerate(["a.png", "gone.png"])]
    write(folder / "urls.template", addresses)


def _shard(folder: Path) -> None:
    members: dict[str, bytes] = {}
    for number, kind in enumerate(["png", "jpeg", "png"]):
        data = io.BytesIO()
        shape((40 + number, 40), "pink", COLORS[number], "rectangle").save(data, kind)
        members[f"{number}.{kind}"] = data.getvalue()
        about = {"id": f"s{number}", "captions": [f"a {COLORS[number]} box", "a box on pink"], "category": kind}
        if number != 1:
            members[f"{number}.json"] = json.dumps(about).encode()
        else:
            members[f"{number}.txt"] = b"a green box\n"
    packed = _tar(members)
    (folder / "shard.tar").write_bytes(packed)
    (folder / "shard.tar.gz").write_bytes(gzip.compress(packed, mtime=TIME))


def _tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number, (name, data) in enumerate(members.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), TIME + number
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def _training(folder: Path) -> None:
    """Coloured pictures with captions, questions, conversations and preferences."""
    (folder / "pictures").mkdir(parents=True)
    captions, questions, mixed, preferences = [], [], [], []
    for number in range(12):
        color, other = COLORS[number % 6], COLORS[(number + 1) % 6]
        image = f"pictures/{number}.png"
        shape((40 + number, 64), other, color, "ellipse").save(folder / image)
        about = {"id": f"s{number}", "image": image}
        captions.append(about | {"captions": [f"a {color} circle", f"{color} on {other}"]})
        questions.append(about | {"question": "which color is it?", "answers": [color]})
        preferences.append(about | {"question": "which color is it?", "chosen": color, "rejected": other})
        turns = [("human", "<image>what is it?"), ("gpt", f"a {color} circle")]
        turns += [("human", "which color?"), ("gpt", color)]
        mixed.append(about | {"conversations": [{"from": who, "value": text} for who, text in turns]})
    pair = {"id": "pair", "images": ["pictures/0.png", "pictures/1.png"]}
    mixed.append(pair | {"question": "<image> and <image>: the same?", "answer": "no"})
    mixed.append({"id": "text", "question": "what is two and two?", "answer": "four"})
    mixed.append({"id": "gone", "image": "pictures/gone.png", "question": "what is it?", "answer": "nothing"})
    mixed.append({"id": "mute", "image": "pictures/2.png"})
    files = {"captions": captions, "questions": questions, "mixed": mixed, "preferences": preferences}
    for name, rows in files.items():
        write(folder / f"{name}.jsonl", rows)
    coco = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(4)],
        "annotations": [{"id": n, "image_id": n % 4, "caption": f"caption {n}"} for n in range(8)],
    }
    (folder / "coco.json").write_text(json.dumps(coco))
    settings = 'preset = "debug"\ndata = ["train/captions.jsonl"]\nsteps = 2\nbatch-size = 4\nval = 0.25\n'
    (folder / "debug.toml").write_text(settings + "projector-lr = 0.5\n")
    (folder / "odd.toml").write_text("patch = 3\n")


def _predictions(folder: Path) -> None:
    folder.mkdir()

    def asked(*given: str) -> list[dict]:
        question = {"question": "what color is it", "answers": TEN}
        kinds = ["color", "number", "color", "number", "other", "other", "color", "number"]
        return [
            {"id": f"q{i}", **question, "answer": answer, "category": kinds[i], "cost": len(answer) / 10}
            for i, answer in enumerate(given)
        ]

    write(folder / "vqa.jsonl", asked("red", "Red.", "dark red", "blue", "a red", "two", "red", "no"))
    write(folder / "vqa_b.jsonl", asked("red", "blue", "blue", "blue", "dark red", "red", "green", "no"))
    write(folder / "twice.jsonl", asked("red", "red") + asked("red"))
    said = ["a man rides a horse", "two dogs play in the snow", "a red car on the street", "a dog"]
    meant = [
        ["a man is riding a horse", "a person on a brown horse"],
        ["two dogs in the snow", "dogs are playing outside"],
        ["a red car parked on a street", "a car"],
        ["a cat sits on a bed", "the cat is asleep"],
    ]
    write(
        folder / "captions.jsonl",
        ({"id": f"c{i}", "caption": a, "captions": b} for i, (a, b) in enumerate(zip(said, meant, strict=True))),
    )
    scores = [{"cat": 0.7, "dog": 0.2, "cow": 0.1}, {"dog": 0.6, "cat": 0.3, "cow": 0.1}]
    scores += [{"dog": 0.5, "cow": 0.4, "cat": 0.1}, {"cow": 0.8, "cat": 0.1, "dog": 0.1}]
    write(
        folder / "classify.jsonl",
        (
            {"id": f"k{i}", "label": next(iter(found)), "target": target}
            | {"labels": [{"label": name, "score": score} for name, score in found.items()]}
            for i, (found, target) in enumerate(zip(scores, ("cat", "dog", "cow", "cow"), strict=True))
        ),
    )
    replies = ["Yes, there is.", "no", "No, there is none", "yes", "hard to say", "Yes"]
    write(
        folder / "pope.jsonl",
        (
            {"id": f"p{i}", "question": "is there a dog?", "answer": reply, "label": label}
            for i, (reply, label) in enumerate(zip(replies, ("yes", "yes", "no", "no", "no", "yes"), strict=True))
        ),
    )
    pages = [("12 May 2001", ["12 May 2001"]), ("Acme Inc", ["Acme Inc."]), ("total", ["the total"]), ("x", ["y"])]
    write(folder / "anls.jsonl", ({"id": f"a{i}", "answer": a, "answers": b} for i, (a, b) in enumerate(pages)))
    charts = [("10.2", ["10"]), ("12", ["10"]), ("14%", ["0.14"]), ("Norway", ["norway"]), ("Spain", ["France"])]
    write(folder / "chartqa.jsonl", ({"id": f"c{i}", "answer": a, "answers": b} for i, (a, b) in enumerate(charts)))
    picture = np.eye(4)[:, :].tolist()
    captions = [[[0.9, 0.3, 0.1, 0.3], [0.5, 0.8, 0.2, 0.2]], [[0.1, 0.9, 0.4, 0.1]]]
    captions += [[[0.3, 0.3, 0.9, 0.1], [0.1, 0.6, 0.5, 0.6]], [[0.2, 0.1, 0.1, 0.97]]]
    write(
        folder / "retrieval.jsonl",
        (
            {"id": f"i{i}", "captions": [f"caption {n} of {i}" for n in range(len(own))], "caption_embeddings": own}
            | {"embedding": picture[i], "model": "toy@0123456789ab"}
            for i, own in enumerate(captions)
        ),
    )
    results = [{"question_id": number, "answer": answer} for number, answer in enumerate(["red", "blue", "dark red"])]
    (folder / "results.json").write_text(json.dumps(results))
    annotations = [
        {"question_id": i, "answers": [{"answer": text, "answer_id": n} for n, text in enumerate(TEN)]}
        | {"answer_type": "other", "question_type": "what color"}
        for i in range(3)
    ]
    (folder / "annotations.json").write_text(json.dumps({"annotations": annotations}))


def write(path: Path, rows: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
