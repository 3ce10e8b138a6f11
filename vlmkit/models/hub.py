"""Files of models in the cache of the Hugging Face Hub, downloaded where they are missing."""

import errno
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from vlmkit.errors import VlmkitError, reason_of

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
ANSWER_WITHIN = 5.0  # seconds, the Hub
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def snapshot(repo: str, needed: Sequence[str], optional: Sequence[str] = (), *, refetch: bool = False) -> Path:
    """The folder of those files of `repo` that match a pattern; of the cache, if that has all `needed`.

    The Hub is asked only where one is missing, or with `refetch`: a model stays the same until it is fetched again.
    Files in folders of `repo` are left out, unless what is needed is one. Raises VlmkitError, with how to get the
    files, where the Hub has none such or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    if sys.stderr is None or not sys.stderr.isatty():
        disable_progress_bars()
    if not NAME.fullmatch(repo):
        raise VlmkitError(f"{repo} is not the name of a model", "use ORG/NAME, or an existing folder")
    if (folder := cached(repo)) and not refetch and all(any(folder.glob(p)) for p in needed):
        return folder
    ignored = None if any("/" in pattern for pattern in needed) else ["*/*"]
    patterns = [*needed, *optional]
    try:
        got = snapshot_download(repo, allow_patterns=patterns, ignore_patterns=ignored, etag_timeout=ANSWER_WITHIN)
    except RepositoryNotFoundError:
        raise VlmkitError(
            f"model {repo} does not exist on the Hub, or needs a token", "check the name, or hf auth login"
        ) from None
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        if refused := refusal_of_hub(error, repo):
            raise refused from None
        what = f"{repo} is not in the cache of the Hub, and the Hub cannot be reached ({reason_of(error)})"
        remedy = f"on a machine with a network: hf download {repo} --local-dir DIR, then name DIR"
        raise VlmkitError(what, remedy) from None
    return Path(got)


def refusal_of_hub(error: BaseException, what: str) -> VlmkitError | None:
    """What the Hub, or the disk, says against fetching `what`; None where the Hub could not be reached."""
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, HfHubHTTPError) and cause.response is not None):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            where = error.filename or "the cache of the Hub"
            return VlmkitError(
                f"{what} cannot be saved: {where}: {error.strerror}", "free some space, or name a folder"
            )
        return None
    response = cause.response
    status = response.status_code
    if status >= 500:
        return None
    said = reason_of(getattr(cause, "server_message", None) or response.reason_phrase)
    if status == 429:
        from vlmkit.io.http import pause_asked

        seconds = pause_asked(response.headers)
        remedy = f"wait {seconds:.0f} seconds" if seconds else "try again later"
        return VlmkitError(f"the Hub has had too many requests, so {what} was not fetched ({said})", remedy)
    remedies = {401: "hf auth login, or unset HF_TOKEN", 403: "check the rights of your token"}
    return VlmkitError(f"the Hub refuses {what} (HTTP {status}: {said})", remedies.get(status, "try again later"))


def cached(repo: str) -> Path | None:
    """The folder in the cache with the files of `repo`, complete or not; None if there is none."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    # Not by snapshot_download(local_files_only=True): since huggingface_hub 2 it refuses what is not all of a model.
    place = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    try:
        folder = place / "snapshots" / (place / "refs/main").read_text().strip()
    except OSError:
        return None
    return folder if folder.is_dir() else None
