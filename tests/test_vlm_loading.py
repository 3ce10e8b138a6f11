"""A picture that goes bad after it was checked, read in a process of its own as on a GPU: told in one line."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader
from vlm_data import write_data, write_towers

from vlmkit.errors import VlmkitError
from vlmkit.io.sources import Bytes
from vlmkit.io.terminal import Failures
from vlmkit.models.llava.model import Vlm
from vlmkit.train.config import InstructConfig, PreferConfig
from vlmkit.train.data import loader as loading
from vlmkit.train.vlm import run as stage
from vlmkit.train.vlm.collator import ReadPixels, pixel_reader

pytestmark = pytest.mark.slow

BAD = "pictures/7.png"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_towers(write_data(tmp_path_factory.mktemp("data")))


@pytest.fixture
def broken(data: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From the start of the steps, one picture cannot be read; the numbers of processes that were asked for."""
    asked: list[int] = []

    def loader(*arguments: Any, **options: Any) -> DataLoader:
        options |= {"num_workers": 1, "multiprocessing_context": "fork"}
        asked.append(options["num_workers"])
        return DataLoader(*arguments, **options)

    def seeing(vlm: Vlm, seed: int) -> ReadPixels:
        whole = pixel_reader(vlm, seed)

        def see(source: Bytes, view: int, mirror: bool) -> Any:
            if str(source).endswith(BAD):
                raise VlmkitError(f"{source}: truncated", "fix or remove the picture, then train again")
            return whole(source, view, mirror)

        return see

    monkeypatch.setattr(loading, "DataLoader", loader)
    monkeypatch.setattr(stage, "pixel_reader", seeing)
    return asked


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")  # TRL uses the old name
@pytest.mark.parametrize(
    ("kind", "name", "held_out"),
    [("instruct", "questions", False), ("instruct", "questions", True), ("prefer", "preferences", False)],
)
def test_it_is_named(data: Path, broken: list[int], tmp_path: Path, kind: str, name: str, held_out: bool) -> None:
    """In training, and among what is held out."""
    rows = (data / f"{name}.jsonl").read_text().splitlines(keepends=True)
    for part, kept in (("good", [row for row in rows if BAD not in row]), ("all", rows)):
        (tmp_path / f"{part}.jsonl").write_text("".join(kept).replace("pictures/", f"{data}/pictures/"))
    towers = {"vision": str(data / "clip"), "llm": str(data / "llama")}
    make: Any = {"instruct": InstructConfig, "prefer": PreferConfig}[kind]
    config_of = partial(make, out=tmp_path / "out", epochs=1, batch_size=4, **towers)
    if held_out:
        config = config_of(data=[str(tmp_path / "good.jsonl")], val=str(tmp_path / "all.jsonl"))
    else:
        config = config_of(data=[str(tmp_path / "all.jsonl")])
    with Failures() as failures, pytest.raises(VlmkitError) as caught:
        stage.train(config, lambda _: None, failures, note=lambda _: None, quiet=True)
    line = str(caught.value)
    assert line == f"{data}/{BAD}: truncated: fix or remove the picture, then train again"
    assert broken and set(broken) == {1}
    assert not (tmp_path / "out" / "model.safetensors").exists()
