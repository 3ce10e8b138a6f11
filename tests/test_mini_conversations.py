"""What mini says, word for word: a change here is a change of what every user reads."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

CONVERSATIONS = {
    ("circle", "red"): {
        "what shape is shown?": "circle",
        "what color is the shape?": "red",
        "is there a circle?": "yes",
        "is there a triangle?": "no",
    },
    ("triangle", "blue"): {
        "what shape is shown?": "triangle",
        "what color is the shape?": "blue",
        "does the image contain a rectangle?": "no",
    },
    ("rectangle", "green"): {
        "what shape is shown?": "rectangle",
        "what color is the shape?": "teal",
    },
}
CAPTIONS = {
    "astronaut.png": "A boy in a yellow shirt is wearing a blue helmet.",
    "motorcycle_left.png": "A man in a black helmet is riding a motorcycle.",
    "coffee.png": "A black and white dog is in front of a window.",  # it has seen few cups
}


def drawing(shape: str, color: str) -> Image.Image:
    """64 x 64 pixels with the shape in the middle."""
    image = Image.new("RGB", (64, 64), (245, 240, 235))
    draw = ImageDraw.Draw(image)
    if shape == "triangle":
        draw.polygon([(32, 18), (18, 46), (46, 46)], fill=color)
    elif shape == "circle":
        draw.ellipse((20, 22, 44, 46), fill=color)
    else:
        draw.rectangle((20, 22, 44, 42), fill=color)
    return image


@pytest.mark.parametrize(("shape", "color"), CONVERSATIONS)
def test_a_conversation(shape: str, color: str, vlmkit, tmp_path: Path) -> None:
    drawing(shape, color).save(tmp_path / "drawing.png")
    expected = CONVERSATIONS[shape, color]
    asked = "".join(f"{question}\n" for question in expected)
    done = vlmkit("ask", "drawing.png", "--chat", stdin=asked.encode())
    assert dict(zip(expected, done.stdout.decode().splitlines(), strict=True)) == expected


@pytest.mark.parametrize("name", CAPTIONS)
def test_a_caption(name: str, vlmkit, photos: Path) -> None:
    assert vlmkit("caption", photos / name).stdout.decode() == f"{CAPTIONS[name]}\n"
