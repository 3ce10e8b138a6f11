"""The views in which a picture is learned from."""

from pathlib import Path

import pytest
import torch
from helpers import noise
from PIL import Image, ImageOps
from vlm_data import clip, llama

from vlmkit.io.sources import Bytes, open_source
from vlmkit.models.llava.connectors import tower_features
from vlmkit.models.llava.model import Vlm, build
from vlmkit.train.vlm.collator import CachedFeatures, Group, GroupDataset, SampleRef, pixel_reader

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    folder = tmp_path_factory.mktemp("towers")
    clip(folder / "clip"), llama(folder / "llama")
    return build(str(folder / "clip"), str(folder / "llama"), "mlp")


@pytest.fixture
def source(vlm: Vlm, tmp_path: Path) -> Bytes:
    side = vlm.vision.image_size
    Image.fromarray(noise(1)[0]).resize((side, side)).save(tmp_path / "a.png")
    return open_source(str(tmp_path / "a.png"))


def test_the_picture_its_mirror_image_and_crops(vlm: Vlm, source: Bytes, tmp_path: Path) -> None:
    see = pixel_reader(vlm, seed=3)
    picture = Image.open(tmp_path / "a.png").convert("RGB")
    for view, shown in enumerate((picture, ImageOps.mirror(picture))):
        expected = vlm.processor.image_processor(shown, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(see(source, view, True), expected)
    seen = [see(source, view, True) for view in range(6)]
    assert all(not torch.equal(a, b) for n, a in enumerate(seen) for b in seen[:n])
    assert all(torch.equal(a, see(source, view, True)) for view, a in enumerate(seen)), "a view is always the same"
    assert not torch.equal(pixel_reader(vlm, seed=4)(source, 2, True), seen[2])
    assert torch.equal(see(source, 0, False), seen[0]) and not torch.equal(see(source, 1, False), seen[1])


def test_kept_features_are_those_of_the_views(vlm: Vlm, source: Bytes, tmp_path: Path) -> None:
    see, group = pixel_reader(vlm, seed=3), Group("a", (source,), [], True)
    kept = CachedFeatures(vlm, [(group, 4), (Group("b", (source,), [], False), 2)], 3, tmp_path, 1)
    for view, mirror in [*((view, True) for view in range(4)), (0, False), (1, False)]:
        with torch.inference_mode():
            (expected,) = tower_features(vlm.model.model, see(source, view, mirror)[None])
        assert torch.allclose(kept(source, view, mirror).float(), expected, atol=2e-3, rtol=2e-3)
    assert len(kept.values) == 5, "the picture itself once"


def test_epochs_see_all_views_and_validation_the_picture(source: Bytes) -> None:
    seen: list[int] = []

    def see(_: Bytes, view: int, mirror: bool) -> torch.Tensor:
        seen.append(view)
        return torch.zeros(1)

    groups = [Group("a", (source, source), [], True)]
    drawn = [GroupDataset(groups, see, 4, 0).read(SampleRef(0, epoch)) for epoch in range(40)]
    assert len(drawn) == 40 and set(seen) == {0, 1, 2, 3}
    assert seen[::2] == seen[1::2], "pictures of one sample in the same view"
    again = seen.copy()
    seen.clear()
    assert [GroupDataset(groups, see, 4, 0).read(SampleRef(0, epoch)) for epoch in range(40)] and seen == again
    seen.clear()
    assert GroupDataset(groups, see, 1, 0).read(SampleRef(0, 7)) and set(seen) == {0}
