"""serve: its own description of its interface, held against what it does by schemathesis."""

import subprocess
import sys
from pathlib import Path

import pytest
from serving import Served

# What fits a schema may still be refused: an empty query, a picture that is none, an input without parts.
OPTIONS = ["--checks", "all", "--exclude-checks", "positive_data_acceptance", "--phases", "coverage,fuzzing"]
BOUNDS = ["--max-examples", "10", "--generation-deterministic", "--warnings", "off", "--no-color"]


@pytest.mark.slow
def test_every_operation_is_as_described(served: Served, tmp_path: Path) -> None:
    """The page is not described there: it is for people."""
    document = served.get("/openapi.json").json()
    assert len(document["paths"]) == 9 and "/picture" not in document["paths"]
    words = [Path(sys.executable).with_name("schemathesis"), "run", f"{served.url}/openapi.json", *OPTIONS, *BOUNDS]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "No issues found" in done.stdout, done.stdout
    assert "a request failed" not in served.said()
