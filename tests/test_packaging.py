"""The wheel and the sdist: what is in them, what they need, and what each extra is for."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import dependencies
import dual_encoders
import pytest
import sbom
import vlm_data
from bare import ROOT, bare
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from helpers import jsonl, picture, records

import vlmkit as package

pytestmark = pytest.mark.slow

PAGE = ROOT / "man/vlmkit-dependencies.md"


def run(*line: object, code: int = 0, **options) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run([*map(str, line)], capture_output=True, **options)
    assert done.returncode == code, done.stderr.decode()
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that it makes."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of the wheel, in an environment that holds nothing but the core's packages."""
    python = bare(tmp_path_factory.mktemp("bare") / "venv")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    return python.with_name("vlmkit")


def test_both_are_good_to_publish(built: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())
    assert {path.name for path in built.iterdir()} == {
        f"vlmkit-{package.__version__}.tar.gz",
        f"vlmkit-{package.__version__}-py3-none-any.whl",
    }


def test_the_tree_makes_the_same_wheel_as_the_sdist(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, ROOT)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_the_wheel_holds_the_package_and_its_manual_alone(built: Path, wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    assert not [name for name in names if "test" in name or "recipes" in name or "__pycache__" in name]
    folders = {name.split("/")[0] for name in names}
    assert folders == {"vlmkit", *(f"vlmkit-{package.__version__}.{kind}" for kind in ("data", "dist-info"))}
    pages = {path.name for path in (ROOT / "man").glob("*.[157]")}
    assert pages <= {Path(name).name for name in names}
    assert "vlmkit/models/mini/talk.onnx" in names
    page = ROOT / "vlmkit/serve/page"
    assert {str(path.relative_to(ROOT)) for path in page.rglob("*.*") if path.suffix != ".pyc"} <= set(names)
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        inside = {name.split("/", 1)[1] for name in sdist.getnames()}
    assert {"tests/test_packaging.py", "man/sbom.py", "vlmkit/recipes/mini/data.py", "LICENSE"} <= inside


def test_the_core_does_all_but_what_extras_are_for(core: Path, environment: dict[str, str], tmp_path: Path) -> None:
    options = {"cwd": tmp_path, "env": environment}
    assert run(core, "--version", **options).stdout == f"vlmkit {package.__version__}\n".encode()
    picture(tmp_path / "photos/a.png", "red", (80, 60))
    run(core, "index", **options, input=run(core, "embed", "photos", **options).stdout)
    assert run(core, "search", "red", "-l", **options).stdout.endswith(b"photos/a.png\n")
    assert run(core, "caption", "photos/a.png", **options).stdout.endswith(b".\n")
    assert run(core, "ask", "photos/a.png", "what color is it?", **options).stdout
    scored = jsonl({"id": "a", "question": "?", "answers": ["red"], "answer": "red"})
    assert records(run(core, "eval", "vqa", **options, input=scored).stdout)
    run(core, "train", "--help", **options)


@pytest.mark.parametrize(
    ("line", "what", "extra"),
    [
        ("ask a.png what? --attention out.png", "--attention needs the package matplotlib", "attention"),
        ("ask a.png what? --schema name", "--schema needs the package jsonschema", "schema"),
        ("ask a.png what? -m openai:x", "a model of an endpoint needs the package openai", "openai"),
        ("embed a.png -m clip --precision int8", "--precision int8 needs the package onnx", "onnx"),
        ("train contrastive c.jsonl -o out --preset debug", "train needs the package accelerate", "train"),
        ("train align c.jsonl --preset debug --dry-run", "train needs the package accelerate", "train"),
        ("eval vqa answers.xlsx", "a table in xlsx needs the package openpyxl", "eval"),
        ("download urls.parquet -o out", "a Parquet file needs the package pyarrow", "parquet"),
        ("embed a.heic", "a.heic: HEIC pictures need one more package", "heic"),
        ("search cat -i qdrant:x/c", "qdrant:x needs the package qdrant_client", "qdrant"),
        ("serve", "serve needs the package starlette", "serve"),
        ("demo", "the demo's photographs are not installed", "demo"),
    ],
)
def test_what_is_missing_is_one_line(
    core: Path, environment: dict[str, str], tmp_path: Path, line: str, what: str, extra: str
) -> None:
    picture(tmp_path / "a.png", "red", (80, 60))
    for name, data in {
        "a.heic": b"\0\0\0\x18ftypheic" + bytes(40),
        "answers.xlsx": b"PK\3\4",
        "urls.parquet": b"PAR1",
    }.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "c.jsonl").write_bytes(jsonl({"id": "a", "image": "a.png", "captions": ["a"], "caption": "a"}))
    if "clip" in line:
        dual_encoders.clip(tmp_path / "clip")
    before = {path.name for path in tmp_path.iterdir()}
    done = run(core, *line.split(), code=2, cwd=tmp_path, env=environment)
    (told,) = done.stderr.decode().splitlines()
    assert what in told and f"pip install 'vlmkit[{extra}]'" in told
    assert done.stdout == b"" and {path.name for path in tmp_path.iterdir()} - {"home"} == before


def test_a_search_without_the_exporter(core: Path, environment: dict[str, str], tmp_path: Path) -> None:
    options = {"cwd": tmp_path, "env": environment}
    picture(tmp_path / "a.png", "red", (80, 60))
    model = dual_encoders.clip(tmp_path / "clip")
    run(core, "index", **options, input=run(core, "embed", "a.png", "-m", model, **options).stdout)
    line = f"{core} search red -l"
    shown = run("script", "-qec", line, "/dev/null", **options).stdout.decode()
    assert "pip install 'vlmkit[onnx]' makes it quicker" in shown and "a.png" in shown


def test_train_needs_no_more_than_its_extra(wheel: Path, environment: dict[str, str], tmp_path: Path) -> None:
    vlm_data.write_data(tmp_path)
    python = bare(tmp_path / "venv", "train")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    words = ["questions.jsonl", "--from", "mini", "--lora", "2", "--preset", "debug", "--steps", "1", "-o", "out"]
    run(python.with_name("vlmkit"), "train", "instruct", *words, cwd=tmp_path, env=environment)
    assert (tmp_path / "out/loss.png").exists()


def test_each_package_of_pyproject_is_explained() -> None:
    text = PAGE.read_text()
    for group, rows in dependencies.declared(ROOT).items():
        assert group in ("core", "all") or f"`{group}`" in text
        for row in rows:
            assert row.name == "vlmkit" or row.name in text, row.name


def test_the_list_of_licences_is_what_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = PAGE.read_text()
    assert list(dependencies.differences(ROOT, text)) == []
    listed = dependencies.listed(text)
    assert listed["torch"][0] == "core" and listed["trl"] == ("prefer", "Apache-2.0") and "MIT" in listed["typer"]
    assert not [name for name in listed if name.startswith("nvidia")]
    block = dependencies.BLOCK

    def page(rows: dict[str, tuple[str, str]]) -> str:
        return block.sub(lambda found: found[1] + dependencies.table(rows) + found[3], text)

    assert page(listed) == text, "in order"
    without = {name: row for name, row in listed.items() if name not in ("rich", "mdurl")}
    assert list(dependencies.differences(ROOT, page(without))) == ["rich is not listed as of core"]
    changed = listed | {
        "rich": ("core", "GPL-3.0-only"),
        "trl": ("eval", "Apache-2.0"),
        "torch": ("core", "Apache-2.0"),
    }
    changed |= {"of-older-versions": ("core", "MIT"), "scipy": ("demo, recipe", "BSD-3-Clause")}
    assert list(dependencies.differences(ROOT, page(changed))) == [
        "trl is not listed as of prefer",
        "rich is under MIT, not GPL-3.0-only",
    ]


def test_the_bill_of_materials(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / wheel.name).write_bytes(wheel.read_bytes())
    line = [sys.executable, ROOT / "man/sbom.py", tmp_path]
    path = Path(run(*line).stdout.decode().strip())
    assert path == tmp_path / f"vlmkit-{package.__version__}.cdx.json"
    text = path.read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    run(*line)
    assert path.read_text() == text
    found = json.loads(text)
    components = {component["name"]: component for component in found["components"]}
    assert components["torch"]["scope"] == "required" and components["trl"]["scope"] == "optional"
    assert components["rich"]["purl"].startswith("pkg:pypi/rich@") and "pytest" not in components
    needs = {row["ref"]: row.get("dependsOn", []) for row in found["dependencies"]}
    assert "typer" in needs["vlmkit"] and "huggingface-hub" in needs["transformers"]
    assert sbom.sbom(tmp_path / wheel.name) == text
