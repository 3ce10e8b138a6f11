"""Environments that hold the core alone, or the core and some extras, of what is installed here."""

import subprocess
import sys
from pathlib import Path

from dependencies import CORE, closure, requirements
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def bare(folder: Path, *extras: str, also: str = "") -> Path:
    """Make a virtual environment with links to the packages of the core and of `extras`; its python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    groups = requirements(ROOT)
    needed = [*groups[CORE], *(row for extra in extras for row in groups[extra]), *map(Requirement, also.split())]
    found = closure(needed)
    assert not found.missing, f"not installed: {', '.join(sorted(found.missing))}"
    for package in found.found.values():
        for name in {path.parts[0] for path in package.files or [] if path.parts[0] not in ("..", "__pycache__")}:
            if not (site / name).exists():
                (site / name).symlink_to(package.locate_file(name))
    return folder / "bin/python"
