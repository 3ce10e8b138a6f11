"""Command lines do what they did when `python tests/golden_cli/run.py --write` wrote down what they do."""

import subprocess
import sys
from pathlib import Path

import pytest
from run import EXPECTED, NAMES, difference

pytestmark = pytest.mark.golden


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what each case does now."""
    folder = tmp_path_factory.mktemp("golden")
    script = Path(__file__).with_name("run.py")
    subprocess.run([sys.executable, script, folder / "out", "--work", folder / "work", "--jobs", "2"], check=True)
    return folder / "out"


@pytest.mark.parametrize("name", NAMES)
def test_as_before(name: str, outcomes: Path) -> None:
    found = difference(name, EXPECTED, outcomes)
    assert not found, f"\n{found}"


def test_nothing_is_expected_of_cases_that_are_gone() -> None:
    assert sorted(path.stem for path in EXPECTED.iterdir()) == sorted(NAMES)
