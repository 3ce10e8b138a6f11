"""Model files from the Hugging Face Hub: its own client, its own cache, nothing asked over the network twice."""

import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from vlmkit.errors import VlmkitError, first_line

ANSWER_WITHIN = 5.0  # seconds
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def snapshot(repo: str, needed: Sequence[str], optional: Sequence[str] = (), *, fresh: bool = False) -> Path:
    """The folder of those files of `repo` that match a pattern; of the cache, if that has all `needed`.

    The Hub is asked only where one is missing, or with `fresh`: a model stays the same until it is fetched again.
    Files in folders of `repo` are left out, unless what is needed is one.

    Raises VlmkitError, with how to get the files, where the Hub has none such or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    if sys.stderr is None or not sys.stderr.isatty():
        disable_progress_bars()
    if not NAME.fullmatch(repo):
        raise VlmkitError(f"{repo} is no name of a model", "use ORG/NAME, or an existing folder")
    if (folder := cached(repo)) and not fresh and all(any(folder.glob(p)) for p in needed):
        return folder
    wanted = [*needed, *optional]
    left_out = None if any("/" in pattern for pattern in needed) else ["*/*"]
    try:
        got = snapshot_download(repo, allow_patterns=wanted, ignore_patterns=left_out, etag_timeout=ANSWER_WITHIN)
    except RepositoryNotFoundError:
        raise VlmkitError(f"the Hub has no model {repo}, or not for you", "check the name, or hf auth login") from None
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        reason = first_line(error)[:120]
        what = f"{repo} is not in the cache of the Hub, and the Hub cannot be asked ({reason})"
        raise VlmkitError(
            what, f"where there is a network: hf download {repo} --local-dir DIR, then name DIR"
        ) from None
    return Path(got)


def cached(repo: str) -> Path | None:
    """The folder of what the cache has of `repo`, be it all of it or some."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    # Not by snapshot_download(local_files_only=True): since huggingface_hub 2 it refuses what is not all of a model.
    place = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    try:
        folder = place / "snapshots" / (place / "refs/main").read_text().strip()
    except OSError:
        return None
    return folder if folder.is_dir() else None
