"""demo: the main job on photographs that scikit-image and scikit-learn carry."""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

from vlmkit.cli.demo_files import write_files
from vlmkit.cli.options import Common, option
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.terminal import console

PHOTOGRAPHS = {
    "skimage/data": (
        "astronaut.png brick.png chelsea.png coffee.png coins.png grass.png gravel.png horse.png hubble_deep_field.jpg"
        " ihc.png motorcycle_left.png page.png retina.jpg rocket.jpg"
    ),
    "sklearn/datasets/images": "china.jpg flower.jpg",
}
LINES = [
    "vlmkit embed photos/ | vlmkit index -i ./demo.index",
    "vlmkit index -i ./demo.index --info",
    'vlmkit search -i ./demo.index "a cup of coffee" -k 3',
    'vlmkit search -i ./demo.index "a motorcycle" -k 3',
    "vlmkit search -i ./demo.index --image photos/flower.jpg -k 3",
    "vlmkit classify photos/chelsea.png photos/motorcycle_left.png --labels cat,dog,motorcycle -k 1",
]
RECORDS = "vlmkit index -i ./demo.index --dump -o photos.jsonl"


def collect(folder: Path) -> int:
    """Copy the photographs that are installed into `folder`; how many. Raises VlmkitError if there are none."""
    count = 0
    for place, names in PHOTOGRAPHS.items():
        package, _, inside = place.partition("/")
        spec = importlib.util.find_spec(package)
        for root in spec.submodule_search_locations or [] if spec else []:
            for name in names.split():
                source = Path(root) / inside / name
                if source.is_file():
                    shutil.copy(source, folder / name)
                    count += 1
    if not count:
        raise VlmkitError("the demo's photographs are not installed", "pip install 'vlmkit[demo]'")
    return count


def _show(folder: Path, *, keep: bool) -> None:
    """Print each shell line, then run it in `folder`. Raises VlmkitError if one fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = os.environ | {"PATH": path}
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    count = collect(folder / "photos")
    _say(f"# {count} photographs of scikit-image and scikit-learn are in photos/", "dim")
    for line in LINES:
        _say(f"\n$ {line}", "bold")
        code = subprocess.run(line, shell=True, cwd=folder, env=environment).returncode
        if code:
            raise VlmkitError(f"a line of the demo ended with exit code {code}", f"run it yourself: {line}")
    _say("\n# Now with your own:", "dim")
    _say("vlmkit embed ~/Pictures | vlmkit index", "bold")
    _say('vlmkit search "what you look for"', "bold")
    if keep:
        write_files(folder)
        subprocess.run(RECORDS, shell=True, cwd=folder, env=environment, check=True)
        _say("\n# The examples of the manual pages run here:", "dim")
        _say(f"cd {shlex.quote(str(folder))} && export VLMKIT_INDEX=./demo.index", "bold")


def _say(text: str, style: str) -> None:
    from rich.text import Text

    console().print(Text(text, style=style), soft_wrap=True)
    sys.stdout.flush()


def demo(
    run: Common,
    keep: Annotated[
        Path | None,
        option(
            "--keep DIR",
            "Leave the photographs, the index and other files in DIR: the examples of the manual run there.",
        ),
    ] = None,
) -> Exit:
    """Show what vlmkit does, on photographs that come with Python packages.

    Prints each command line before it runs it, in a temporary folder unless --keep names one. Needs the extra `demo`.
    """
    if keep is not None:
        _show(keep, keep=True)
        return Exit.OK
    with tempfile.TemporaryDirectory(prefix="vlmkit-demo-") as name:
        _show(Path(name), keep=False)
    return Exit.OK
