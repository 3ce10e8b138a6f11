"""Data sets: small files in the true layout of each, from a server in their place, become records."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import SCRIPT
from faults import Faulty, serving
from helpers import jpeg, jsonl, records

from vlmkit.datasets import DATASETS
from vlmkit.download.run import DownloadOptions, download
from vlmkit.errors import VlmkitError
from vlmkit.io import registry
from vlmkit.io.records import Failed

PHOTO = jpeg("green")


def zipped(members: dict[str, bytes | object]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content if isinstance(content, bytes) else json.dumps(content))
    return data.getvalue()


def tarred(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return data.getvalue()


def coco(name: str, numbers: list[int]) -> dict:
    start = f"COCO_{name}_" if name.endswith("2014") else ""
    return {
        "info": {"year": int(name[-4:])},
        "images": [
            {"id": n, "file_name": f"{start}{n:012}.jpg", "width": 40, "height": 30, "license": 1} for n in numbers
        ],
        "annotations": [
            {"id": 10 * n + i, "image_id": n, "caption": f"caption {i} of {n} \n"} for i in range(2) for n in numbers
        ],
    }


KARPATHY = {
    "dataset_coco.json": {
        "images": [
            {
                **{"filepath": f"{part}2014", "filename": f"COCO_{part}2014_{n:012}.jpg", "cocoid": n, "split": split},
                "sentences": [{"raw": f"Said of {n}. "}, {"raw": "again\n said"}],
            }
            for n, part, split in [(1, "train", "train"), (2, "val", "restval"), (3, "val", "val"), (4, "val", "test")]
        ]
    },
    "dataset_flickr30k.json": {
        "images": [
            {"filename": f"{n}.jpg", "split": split, "imgid": n, "sentences": [{"raw": f"Said of {n} ."}]}
            for n, split in [(36979, "train"), (65567, "val"), (1007129816, "test")]
        ]
    },
}
CONVERSATION = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A bowl."}]
TEXTUAL = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hello."}]
MIX = [
    {"id": "1", "image": "coco/train2017/000000000009.jpg", "conversations": CONVERSATION},
    {"id": "2", "image": "gqa/images/7.jpg", "conversations": CONVERSATION},
    {"id": "3", "image": "textvqa/train_images/ab.jpg", "conversations": CONVERSATION},
    {"id": "4", "image": "vg/VG_100K_2/5.jpg", "conversations": CONVERSATION},
    {"id": "5", "image": "ocr_vqa/images/1.jpg", "conversations": CONVERSATION},
    {"id": "wgByO4Y_0", "conversations": TEXTUAL},
]
ROW = bytes([3]) + bytes([255]) * 1024 + bytes(2048)  # a red cat
FILES: dict[str, bytes] = {
    "annotations_trainval2017.zip": zipped(
        {f"annotations/captions_{n}2017.json": coco(f"{n}2017", [9, 25]) for n in ("train", "val")}
    ),
    "annotations_trainval2014.zip": zipped(
        {f"annotations/captions_{n}2014.json": coco(f"{n}2014", [9, 25]) for n in ("train", "val")}
    ),
    **{
        f"{n}2017.zip": zipped({f"{n}2017/": b"", **{f"{n}2017/{i:012}.jpg": PHOTO for i in (9, 25)}})
        for n in ("train", "val")
    },
    **{
        f"{n}2014.zip": zipped({f"{n}2014/COCO_{n}2014_{i:012}.jpg": PHOTO for i in (1, 2, 3, 4, 9, 25)})
        for n in ("train", "val")
    },
    "caption_datasets.zip": zipped(KARPATHY),
    "flickr30k-images.zip": zipped(
        {f"flickr30k-images/{n}.jpg": PHOTO for n in (36979, 65567, 1007129816)} | {"__MACOSX/._x": b"x"}
    ),
    **{
        f"v2_Questions_{n.title()}_mscoco.zip": zipped(
            {
                f"v2_OpenEnded_mscoco_{n}2014_questions.json": {
                    "questions": [{"image_id": 9, "question": "What color?", "question_id": 9000}]
                }
            }
        )
        for n in ("train", "val")
    },
    **{
        f"v2_Annotations_{n.title()}_mscoco.zip": zipped(
            {
                f"v2_mscoco_{n}2014_annotations.json": {
                    "annotations": [
                        {
                            **{"question_id": 9000, "image_id": 9, "question_type": "what color"},
                            **{"answer_type": "other", "multiple_choice_answer": "red"},
                            "answers": [
                                {"answer": "red", "answer_confidence": "yes", "answer_id": i} for i in range(10)
                            ],
                        }
                    ]
                }
            }
        )
        for n in ("train", "val")
    },
    **{
        f"TextVQA_0.5.1_{n}.json": json.dumps(
            {
                "dataset_type": n,
                "data": [
                    {"question": "what says it?", "question_id": 34602, "image_id": "ab", "answers": ["stop"] * 10}
                ],
            }
        ).encode()
        for n in ("train", "val")
    },
    "train_val_images.zip": zipped({"train_images/ab.jpg": PHOTO}),
    "questions1.2.zip": zipped(
        {
            f"{n}_balanced_questions.json": {
                "02930152": {
                    **{"question": "Is the sky dark?", "imageId": "7", "answer": "yes", "isBalanced": True},
                    "types": {"detailed": "verifyAttr", "semantic": "attr", "structural": "verify"},
                }
            }
            for n in ("train", "val", "testdev")
        }
    ),
    "gqa/images.zip": zipped({"images/7.jpg": PHOTO}),
    "VG_100K_2/images.zip": zipped({"VG_100K/2.jpg": PHOTO}),
    "VG_100K_2/images2.zip": zipped({"VG_100K_2/5.jpg": PHOTO}),
    **{
        f"coco_pope_{n}.json": jsonl(
            {
                **{"question_id": 1, "image": "COCO_val2014_000000000009.jpg"},
                **{"text": "Is there a snowboard in the image?", "label": "yes"},
            }
        )
        for n in ("random", "popular", "adversarial")
    },
    "qa.37.raw.train.txt": (
        b"what is on the table in the image3 ?\ncup, plate\nhow many chairs are there in the image3 ?\n2\n"
    ),
    "qa.37.raw.reduced.test.txt": b"what is on the bed in the image3 ?\npillow\n",
    "nyu_depth_images.tar": tarred({"nyu_depth_images/image3.png": PHOTO}, "w"),
    "cifar-10-binary.tar.gz": tarred(
        {
            **{f"cifar-10-batches-bin/data_batch_{i}.bin": ROW * 2 for i in range(1, 6)},
            "cifar-10-batches-bin/test_batch.bin": ROW,
        }
    ),
    "imagenette2-320.tgz": tarred(
        {
            f"imagenette2-320/{n}/{folder}/x_{folder}.JPEG": PHOTO
            for n in ("train", "val")
            for folder in ("n01440764", "n03888257")
        }
    ),
    "blip_laion_cc_sbu_558k.json": json.dumps(
        [{"id": "004539375", "image": "00453/004539375.jpg", "conversations": CONVERSATION}]
    ).encode(),
    "LLaVA-Pretrain/resolve/main/images.zip": zipped({"00453/004539375.jpg": PHOTO}),
    "llava_instruct_150k.json": json.dumps(
        [{"id": "000000000009", "image": "000000000009.jpg", "conversations": CONVERSATION}]
    ).encode(),
    "llava_v1_5_mix665k.json": json.dumps(MIX).encode(),
    "questions.jsonl": jsonl({"question_id": 0, "image": "001.jpg", "text": "Name it?", "category": "conv"}),
    "answers_gpt4.jsonl": jsonl({"question_id": 0, "text": "Diamond Head."}),
}
SINGLE = ["/train2017/000000000009.jpg", "/train2017/000000000025.jpg", "/val2014/COCO_val2014_000000000009.jpg"]
SINGLE += [
    "/train2014/COCO_train2014_000000000009.jpg",
    "/datasets/liuhaotian/llava-bench-in-the-wild/resolve/main/images/001.jpg",
]


def content(url: str) -> bytes:
    """What stands in for the file at `url`: the one whose name is the longest end of it."""
    ends = [name for name in FILES if url.endswith(f"/{name}")]
    return FILES[max(ends, key=len)]


@pytest.fixture
def server(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
        del environment[name]
    room = shutil.disk_usage(tmp_path)._replace(free=10**12)  # the room that the true archives would need
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    with serving() as faulty:
        for name in DATASETS:
            urls = [file.url for file in DATASETS.load(name).files() if not file.url.startswith("pypi:")]
            faulty.files |= {urlsplit(url).path: content(url) for url in urls}
        faulty.files |= dict.fromkeys(SINGLE, PHOTO)
        yield faulty


def get(server: Faulty, folder: Path, name: str, **how: object) -> list[dict]:
    options = DownloadOptions(folder, mirror=server.base, check=False, quiet=True, **how)
    return list(download([name], options))


PARTS = [
    (name, split) for name in DATASETS if name not in ("easy-vqa", "mix665k") for split in DATASETS.load(name).splits
]


@pytest.mark.parametrize(("name", "split"), PARTS)
def test_every_split_becomes_records_with_pictures(tmp_path: Path, server: Faulty, name: str, split: str) -> None:
    """All of it, then the same again without a request; archives are gone, pictures can be opened."""
    from PIL import Image

    found = get(server, tmp_path, name, split=split)
    assert found and not any(isinstance(row, Failed) for row in found)
    assert len({row["id"] for row in found}) == len(found)
    for row in found:
        assert os.path.isabs(row["image"]) and ("captions" in row or "answers" in row or "conversations" in row)
        Image.open(row["image"]).verify()
    hits = server.hits.total()
    assert get(server, tmp_path, name, split=split) == found and server.hits.total() == hits
    assert [path for path in tmp_path.rglob("*") if path.suffix in (".zip", ".tgz", ".tar", ".gz", ".part")] == []


def test_captions_of_coco(tmp_path: Path, server: Faulty) -> None:
    first, _ = get(server, tmp_path, "coco-captions")
    assert first == {
        **{"id": "coco-9", "image": str(tmp_path / "coco/train2017/000000000009.jpg"), "width": 40, "height": 30},
        "captions": ["caption 0 of 9", "caption 1 of 9"],
    }
    karpathy = get(server, tmp_path, "coco-captions", split="karpathy-train")
    assert [(row["id"], row["captions"]) for row in karpathy] == [
        (f"coco-{n}", [f"Said of {n}.", "again said"]) for n in (1, 2)
    ]
    assert karpathy[1]["image"].endswith("coco/val2014/COCO_val2014_000000000002.jpg")


def test_questions(tmp_path: Path, server: Faulty) -> None:
    (vqa,) = get(server, tmp_path, "vqav2", split="val")
    assert vqa["answers"] == ["red"] * 10 and vqa["category"] == "other" and vqa["question"] == "What color?"
    assert vqa["image"].endswith("/coco/val2014/COCO_val2014_000000000009.jpg")
    (pope,) = get(server, tmp_path, "pope", split="popular")
    assert (pope["answers"], pope["category"]) == (["yes"], "popular")
    (gqa,) = get(server, tmp_path, "gqa")
    assert (gqa["answers"], gqa["category"]) == (["yes"], "verify")
    (bench,) = get(server, tmp_path, "llava-bench")
    assert (bench["answers"], bench["category"]) == (["Diamond Head."], "conv")
    cups, chairs = get(server, tmp_path, "daquar")
    assert (cups["id"], cups["question"], cups["answers"]) == ("image3-q1", "what is on the table", ["cup, plate"])
    assert (chairs["id"], chairs["question"]) == ("image3-q2", "how many chairs are there")


def test_classes(tmp_path: Path, server: Faulty) -> None:
    from PIL import Image

    train = get(server, tmp_path, "cifar10")
    assert len(train) == 10 and train[0]["answers"] == ["cat"]
    with Image.open(train[0]["image"]) as image:
        assert image.size == (32, 32) and image.getpixel((5, 7)) == (255, 0, 0)
    assert [row["answers"] for row in get(server, tmp_path, "imagenette", split="val")] == [["tench"], ["parachute"]]


def test_the_mixture_shares_pictures_and_says_what_is_missing(tmp_path: Path, server: Faulty) -> None:
    get(server, tmp_path, "llava-instruct-150k")
    *found, left_out = get(server, tmp_path, "mix665k")
    assert isinstance(left_out, Failed) and "1 rows about pictures of OCR-VQA" in left_out.error
    assert [row.get("conversations") for row in found] == [CONVERSATION] * 4 + [TEXTUAL]
    assert all(Path(row["image"]).is_file() for row in found[:-1]) and "image" not in found[-1]
    assert server.hits["/zips/train2017.zip"] == 2  # its size, then itself: once for both sets


def test_a_limit_fetches_no_more_than_it_needs(tmp_path: Path, server: Faulty) -> None:
    (row,) = get(server, tmp_path, "coco-captions", limit=1)
    assert Path(row["image"]).read_bytes() == PHOTO
    assert server.hits["/zips/train2017.zip"] == 0 and server.hits["/train2017/000000000025.jpg"] == 0
    assert len(get(server, tmp_path, "coco-captions", limit=2)) == 2
    assert server.hits["/train2017/000000000009.jpg"] == 1


def test_what_cannot_be_fetched_is_named(tmp_path: Path, server: Faulty) -> None:
    del server.files["/train2017/000000000025.jpg"]
    good, bad = get(server, tmp_path, "coco-captions", limit=2)
    assert good["id"] == "coco-9" and isinstance(bad, Failed) and bad.id == "coco-25" and "404" in bad.error
    del server.files[urlsplit(DATASETS.load("gqa").files()[0].url).path]
    (failed,) = get(server, tmp_path, "gqa")
    assert isinstance(failed, Failed) and "questions1.2.zip" in str(failed.id) and "404" in failed.error


def test_sizes_and_sums_of_the_list_are_insisted_on(tmp_path: Path, server: Faulty) -> None:
    (failed,) = download(["imagenette"], DownloadOptions(tmp_path, mirror=server.base, quiet=True))
    assert isinstance(failed, Failed) and "it should be 341,663,724" in failed.error


def test_files_of_another_form(tmp_path: Path, server: Faulty) -> None:
    server.files[urlsplit(DATASETS.load("textvqa").files()[0].url).path] = b'{"rows": []}'
    with pytest.raises(VlmkitError, match="textvqa do not have the expected format"):
        get(server, tmp_path, "textvqa")


def test_verify(vlmkit, tmp_path: Path, server: Faulty) -> None:
    get(server, tmp_path / "sets", "flickr30k", split="test")
    fine = records(vlmkit("download", "flickr30k", "--verify", "--dir", "sets").stdout)
    assert {row["state"] for row in fine} == {"ok"} and len(fine) == 6
    picture = tmp_path / "sets/flickr30k/flickr30k-images/36979.jpg"
    picture.write_bytes(picture.read_bytes()[:-1] + b"x")
    (tmp_path / "sets/flickr30k/flickr30k-images/65567.jpg").unlink()
    done = vlmkit("download", "flickr30k", "--verify", "--dir", "sets", code=3)
    assert len(records(done.stdout)) == 4 and done.stderr.count(b"\n") == 2
    assert b"36979.jpg: wrong CRC-32" in done.stderr and b"65567.jpg: No such file" in done.stderr


@pytest.mark.slow
def test_through_a_pipe_into_training(shell, tmp_path: Path, server: Faulty) -> None:
    """Records on standard output, the licence before them on standard error."""
    download = f"vlmkit download coco-captions --mirror {server.base} --no-check --dir sets --limit 2"
    done = shell(f"{download} | vlmkit train align - --preset debug --dry-run -o out")
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout.splitlines()[-1])["samples"] == 4
    assert done.stderr.startswith(b"vlmkit: coco-captions, train2017: licence: captions CC BY 4.0")


def test_a_kill_in_the_middle_then_the_same_bytes(vlmkit, environment, tmp_path: Path, server: Faulty) -> None:
    """Killed while the archive comes: the next run asks for the rest alone."""
    server.slow = 0.02
    path = urlsplit(DATASETS.load("gqa").splits["train"].pictures[0].url).path
    photo = jpeg("blue", (64, 64))
    noise = b"".join(hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(400_000))
    server.files[path] = zipped({"images/7.jpg": photo, "images/noise.bin": noise})
    whole = len(server.files[path])
    options = ["--mirror", server.base, "--no-check", "--dir", "sets"]
    with subprocess.Popen([SCRIPT, "download", "gqa", *options], cwd=tmp_path, env=environment) as process:
        deadline = time.monotonic() + 120
        while server.sent[path] < whole // 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and (tmp_path / "sets/gqa/.images.zip.part").exists()
    server.slow = 0
    sent = server.sent[path]
    assert sent < whole
    (row,) = records(vlmkit("download", "gqa", *options).stdout)
    assert Path(row["image"]).read_bytes() == photo
    assert (tmp_path / "sets/gqa/images/noise.bin").read_bytes() == noise
    assert server.sent[path] - sent < whole - (1 << 20)


@pytest.mark.slow
def test_easy_vqa_from_its_wheel(vlmkit, tmp_path: Path) -> None:
    """With the pip of this Python; the same records as those of the installed package."""
    found = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", tmp_path / "probe", "easy-vqa==1.0"],
        capture_output=True,
    )
    if found.returncode:
        pytest.skip(f"pip cannot reach easy-vqa here: {found.stderr.decode()[-200:]}")
    done = vlmkit("download", "easy-vqa", "--split", "test", "--dir", "sets")
    rows = records(done.stdout)
    assert len(rows) == 9_673 and all(row["category"] in ("color", "shape", "yes-no") for row in rows)
    assert Path(rows[0]["image"]).is_file() and b"licence: MIT" in done.stderr
    assert len(records(vlmkit("download", "easy-vqa", "--limit", "3", "--dir", "sets").stdout)) == 3


def test_daquar_as_it_is(tmp_path: Path, shared: Path) -> None:
    """The real questions, written down as DAQUAR does it, become the records that they were."""
    real = [json.loads(line) for line in (shared / "data/daquar/questions.jsonl").read_text().splitlines()]
    real.sort(key=lambda row: (row["image"], int(row["id"].rpartition("q")[2])))
    folder = tmp_path / "daquar"
    folder.mkdir()
    lines = [f"{row['question']} in the {Path(row['image']).stem} ?\n{row['answers'][0]}\n" for row in real]
    (folder / "qa.37.raw.train.txt").write_text("".join(lines))
    found = list(DATASETS.load("daquar").splits["train"].records(tmp_path))
    assert len(found) == len(real) > 9_000
    assert [(row["question"], row["answers"]) for row in found] == [(row["question"], row["answers"]) for row in real]
    assert [Path(row["image"]).stem for row in found] == [Path(row["image"]).stem for row in real]


def test_coco_captions_as_they_are(tmp_path: Path, shared: Path) -> None:
    """Real photographs and captions in the layout of COCO's annotations."""
    real = [json.loads(line) for line in (shared / "data/coco/captions.jsonl").read_text().splitlines()]
    numbers = {row["image"]: int(Path(row["image"]).stem) for row in real}
    document = {
        "images": [
            {"id": numbers[row["image"]], "file_name": Path(row["image"]).name, "width": 1, "height": 1} for row in real
        ],
        "annotations": [
            {"id": i, "image_id": numbers[row["image"]], "caption": caption}
            for i, row in enumerate(real)
            for caption in row["captions"]
        ],
    }
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/annotations/captions_train2017.json").write_text(json.dumps(document))
    found = list(DATASETS.load("coco-captions").splits["train2017"].records(tmp_path))
    assert [row["captions"] for row in found] == [[c.strip() for c in row["captions"]] for row in real]
    assert [Path(row["image"]).name for row in found] == [Path(row["image"]).name for row in real]


def test_the_list_says_only_what_is_known(vlmkit) -> None:
    rows = records(vlmkit("download", "--list").stdout)
    assert {row["name"] for row in rows} > set(DATASETS)
    for row in rows:
        assert {"name", "kind", "bytes", "files", "licence", "url", "what", "used_by"} <= row.keys()
        assert ("sha256" in row) != ("revision" in row)
        for file in row["files"] or []:
            assert file["sha256"] is None or len(file["sha256"]) == 64
    (coco,) = [row for row in rows if row["name"] == "coco-captions"]
    assert coco["bytes"] == sum(file["bytes"] for file in coco["files"]) == 40_850_559_926
    assert records(vlmkit("download", "--card", "pope").stdout) == [row for row in rows if row["name"] == "pope"]


@pytest.fixture
def plugin(tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of somebody else's, with two data sets."""
    site = tmp_path / "site"
    (site / "others-1.0.dist-info").mkdir(parents=True)
    (site / "others-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (site / "others-1.0.dist-info/entry_points.txt").write_text(
        "[vlmkit.datasets]\nvast = others:VAST\ntoy = others:TOY\n"
    )
    (site / "others.py").write_text(
        "from vlmkit.datasets.base import DataSet, File, Split\n"
        "from vlmkit.io.records import loads\n"
        "VAST = DataSet('vast', '', '', None, (), {'all': Split((File('http://a.example/vast', 'vast', 1 << 60),),"
        " lambda root: iter(()))})\n"
        "def toys(root):\n"
        "    for row in loads((root / 'toy/toys.json').read_bytes()):\n"
        "        yield {'id': row['name'], 'image': f\"toy/{row['name']}.jpg\", 'answers': [row['kind']]}\n"
        "TOY = DataSet('toy', 'three toys', 'http://toys.example', 'MIT', ('eval vqa',),"
        " {'test': Split((File('http://toys.example/toys.json', 'toy/toys.json'),), toys)})\n"
    )
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), environment.get("PYTHONPATH")]))
    monkeypatch.syspath_prepend(site)
    registry._entry_points.cache_clear()
    yield site
    registry._entry_points.cache_clear()


def test_the_disk_is_looked_at_first(tmp_path: Path, server: Faulty, plugin: Path) -> None:
    """A set larger than any disk: nothing is asked for."""
    with pytest.raises(VlmkitError, match="has room for"):
        get(server, tmp_path, "vast")
    assert server.hits.total() == 0


def test_a_data_set_of_another_package(vlmkit, tmp_path: Path, server: Faulty, plugin: Path) -> None:
    """By name as those that come with vlmkit, and in the list."""
    server.files["/toys.json"] = json.dumps([{"name": "bear", "kind": "soft"}]).encode()
    done = vlmkit("download", "toy", "--mirror", server.base, "--dir", "sets")
    assert records(done.stdout) == [{"id": "bear", "image": f"{tmp_path}/sets/toy/bear.jpg", "answers": ["soft"]}]
    assert b"toy, test: licence: MIT" in done.stderr
    listed = {row["name"]: row for row in records(vlmkit("download", "--list").stdout)}
    assert listed["toy"]["what"] == "three toys" and listed["toy"]["splits"] == ["test"] and "coco-captions" in listed
