"""Settings of every stage: options, files and presets, and which of them wins."""

from pathlib import Path
from typing import Any

import pytest

from vlmkit.cli.app import command_line
from vlmkit.errors import VlmkitError
from vlmkit.train.checkpoints import as_toml
from vlmkit.train.config import (
    PRESETS,
    SETTINGS,
    AlignConfig,
    ContrastiveConfig,
    LitConfig,
    Stage,
    load_config,
    name_of,
)
from vlmkit.train.settings import TRAINED

FLAGS: dict[str, Any] = {"data": ["a.jsonl"], "out": Path("out")}
TOWERS = {"vision": "v", "llm": "l"}


def test_every_setting_of_train_toml_is_an_option() -> None:
    root: Any = command_line()
    options = {name for parameter in root.commands["train"].params for name in parameter.opts}
    named = {f"--{name_of(name)}" for settings in SETTINGS.values() for name in settings if name != "data"}
    assert named <= options and len(named) > 45


@pytest.mark.parametrize(
    ("preset", "file", "flags", "steps"),
    [
        ("debug", None, {}, 20),
        ("debug", None, {"epochs": 1.0}, None),
        ("debug", None, {"epochs": 1.0, "steps": 3}, 3),
        ("debug", "epochs = 2", {}, None),
        ("debug", "epochs = 2\nsteps = 4", {}, 4),
        ("debug", "epochs = 2\nsteps = 4", {"epochs": 1.0}, None),
        ("./mine.toml", "log-every = 3", {}, 7),
        (None, 'preset = "debug"', {}, 20),
    ],
)
def test_what_is_typed_wins(
    preset: str | None, file: str | None, flags: dict[str, Any], steps: int | None, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('steps = 7\nvision = "v"\nlog_every = 2\n')
    path = Path("file.toml") if file else None
    if path and file:
        path.write_text(file)
    made = load_config(Stage.ALIGN, FLAGS | flags, preset, path)
    assert isinstance(made, AlignConfig) and made.steps == steps
    if preset == "./mine.toml":
        assert (made.vision, made.log_every, made.batch_size) == ("v", 3, 256)


@pytest.mark.parametrize(
    ("preset", "file", "steps", "log_every"),
    [(None, "", 9, 5), ("debug", "", 9, 5), ("debug", "steps = 4", 4, 5), (None, "epochs = 2", None, 5)],
)
def test_standing_settings_are_between_preset_and_file(
    preset: str | None, file: str, steps: int | None, log_every: int, tmp_path: Path
) -> None:
    path = tmp_path / "file.toml"
    path.write_text(file)
    standing = {"steps": 9, "log_every": 5, "preset": "small"}
    made = load_config(Stage.ALIGN, FLAGS | TOWERS, preset, path, standing=standing)
    assert (made.steps, made.log_every, made.batch_size) == (steps, log_every, 8 if preset else 64)


@pytest.mark.parametrize("stage", TRAINED)
@pytest.mark.parametrize("preset", PRESETS["vlm"])
def test_saved_settings_are_read_again(stage: Stage, preset: str, tmp_path: Path) -> None:
    made = load_config(stage, FLAGS | {"val": "0.25"}, preset)
    (tmp_path / "train.toml").write_text(as_toml(made))
    again = load_config(stage, {}, file=tmp_path / "train.toml")
    assert type(again) is type(made) and as_toml(again) == as_toml(made) and again.val == 0.25


def test_rates_suit_what_is_trained(tmp_path: Path) -> None:
    def lr(stage: Stage, preset: str | None = None, **flags: Any) -> float:
        return load_config(stage, FLAGS | flags, preset).lr

    assert lr(Stage.INSTRUCT, **TOWERS) == 2e-5 and lr(Stage.INSTRUCT, "small") == 1e-4
    assert lr(Stage.INSTRUCT, "small", lora=4) == lr(Stage.INSTRUCT, "full", lora=4) == 2e-4
    assert lr(Stage.INSTRUCT, "debug", lora=4) == 1e-3 and lr(Stage.PREFER, **TOWERS) == 5e-7
    assert lr(Stage.CONTRASTIVE, "debug") == 1e-3 and lr(Stage.CONTRASTIVE, start="ViT-B-16") == 5e-4
    assert lr(Stage.CONTRASTIVE, "small") == 1e-5 and lr(Stage.CONTRASTIVE, lock="none") == 1e-4
    assert isinstance(load_config(Stage.CONTRASTIVE, FLAGS), LitConfig)
    towers = load_config(Stage.CONTRASTIVE, FLAGS | {"text": "t"}, "debug")
    assert isinstance(towers, LitConfig) and (towers.start, towers.text, towers.steps) == (None, "t", 20)
    assert type(load_config(Stage.CONTRASTIVE, FLAGS | {"lock": "text"})) is ContrastiveConfig
    begun = load_config(Stage.INSTRUCT, FLAGS | {"start": "aligned"}, "small")
    assert "\nvision =" not in as_toml(begun) and 'from = "aligned"' in as_toml(begun)


REFUSED = {
    "steps = 'many'": "file.toml: steps = 'many' has the wrong type: give a whole number",
    "data = 'a.jsonl'": "file.toml: data = 'a.jsonl' has the wrong type: give a list of texts",
    "val = true": "file.toml: val = True has the wrong type: give text or a number",
    "dropout = 1": "file.toml: dropout 1 is out of range: give at least 0 and less than 1",
    "batch-size = 0": "file.toml: batch-size 0 is out of range: give at least 1",
    "beta = 0.1": "file.toml: beta is not for instruct: leave it out, it is for prefer",
    "loss = 'siglip'": "file.toml: loss is not for instruct: leave it out, it is for contrastive",
    "preset = 'huge'": "unknown preset huge: use debug, small, full, or a TOML file such as ./mine.toml",
    "steps =": "file.toml: Invalid value (at end of document): fix the file",
    "[data]": "file.toml: data = {} has the wrong type: give a list of texts",
}


@pytest.mark.parametrize("text", REFUSED)
def test_wrong_settings_are_one_line(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.toml").write_text(text)
    with pytest.raises(VlmkitError) as caught:
        load_config(Stage.INSTRUCT, FLAGS, file=Path("file.toml"))
    assert str(caught.value) == REFUSED[text]


def test_wrong_presets_are_one_line(tmp_path: Path, vlmkit: Any) -> None:
    (tmp_path / "wrong.toml").write_text("patch = 3\n")
    for preset, line in {
        "./gone.toml": "vlmkit: gone.toml: No such file or directory: name a TOML file of settings",
        "wrong.toml": "vlmkit: wrong.toml: unknown setting patch: use the names of the options without --",
    }.items():
        done = vlmkit("train", "align", "a.jsonl", "-o", "out", "--preset", preset, code=2)
        assert done.stderr.decode().splitlines() == [line]
    with pytest.raises(VlmkitError, match="--text-lr needs a locked image tower: use it with --vision, --text"):
        load_config(Stage.CONTRASTIVE, FLAGS | {"start": "tiny", "text_lr": 0.1})
