"""Build FAISS's index over the slots of an index, and measure how thorough its searches must be."""

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.index import exact
from vlmkit.index.approximate import RESERVE, effort_of, set_effort
from vlmkit.index.types import is_lossless

if TYPE_CHECKING:
    import faiss
    import numpy as np

    from vlmkit.index.reader import Index

TRAIN_ROWS = 65_536  # at least 64 for each list of an IVF
ROWS_A_LIST = 64
CODEWORDS = 256  # of product quantisation with 8 bits, which wants more rows than that to be done soon
ADD_ROWS = 16_384
QUERIES = 200
RECALL = 0.98  # measured on a sample: 0.95 holds for queries like it
MAX_EFFORT = 4096
SEED = 0


class Trained(NamedTuple):
    """A finished file, its SHA-256, the slots it covers, and the effort with its measured recall@10."""

    file: Path
    checksum: str
    covered: int
    effort: int
    recall: float


def train(factory: str, index: "Index", file: Path) -> Trained:
    """Build the index that FAISS's `factory` string says over all slots, into `file`. Raises VlmkitError."""
    import faiss
    import numpy as np

    vectors = index.vectors
    try:
        built = faiss.index_factory(index.state.dim, factory, faiss.METRIC_INNER_PRODUCT)
        _train(built, vectors)
        for start in range(0, len(vectors), ADD_ROWS):
            rows = vectors[start : start + ADD_ROWS].astype(np.float32)
            if isinstance(built, faiss.IndexIDMap):
                built.add_with_ids(rows, np.arange(start, start + len(rows)))
            else:
                built.add(rows)
        effort, recall = _measured(built, factory, index)
    except (RuntimeError, MemoryError) as error:
        reason = re.sub(r".* at \S+: ", "", " ".join(str(error).split())) or "not enough memory"
        what = f"{factory} cannot be built over {len(vectors)} vectors ({reason})"
        raise VlmkitError(what, "choose another --type; until then searches are exact") from None
    return Trained(file, _write(built, file), len(vectors), effort, recall)


def _train(built: "faiss.Index", vectors: "np.ndarray") -> None:
    import faiss
    import numpy as np

    ivf = faiss.try_extract_index_ivf(built)
    if isinstance(built, faiss.IndexIVFScalarQuantizer) and built.sq.qtype == built.sq.QT_fp16:
        built.by_residual = False  # so that the codes are the stored numbers
    for part in (built, ivf, getattr(ivf, "pq", None), getattr(built, "pq", None)):
        if part is not None and hasattr(part, "cp"):
            part.cp.min_points_per_centroid = 1  # fewer only make FAISS print warnings
    count = min(len(vectors), max(TRAIN_ROWS, ROWS_A_LIST * (ivf.nlist if ivf else 0)))
    picked = np.sort(np.random.default_rng(SEED).choice(len(vectors), count, replace=False))
    rows = vectors[picked].astype(np.float32)
    built.train(rows if len(rows) >= CODEWORDS else np.resize(rows, (4 * CODEWORDS, rows.shape[1])))


def _measured(built: "faiss.Index", factory: str, index: "Index") -> tuple[int, float]:
    """The least effort (a power of two) that finds enough of the true ten nearest, and the share it finds.

    Half of the queries are stored vectors with noise, half lie between two stored vectors, as texts do: far from all.
    """
    import numpy as np

    queries = _queries(index.vectors)
    k = min(10, len(index.vectors))
    _, truth = exact.search(index.vectors, queries, k)
    count = min(len(index.vectors), k if is_lossless(factory) else RESERVE * k)
    name, recall = effort_of(built), 0.0
    for effort in [2**i for i in range(4, MAX_EFFORT.bit_length())] if name else [0]:
        set_effort(built, effort)
        _, found = built.search(queries, count)
        recall = float(np.mean([np.isin(row, near).mean() for row, near in zip(truth, found, strict=True)]))
        if recall >= RECALL:
            break
    return effort, recall


def _queries(vectors: "np.ndarray") -> "np.ndarray":
    import numpy as np

    rng = np.random.default_rng(SEED)
    one, other = (vectors[rng.integers(len(vectors), size=QUERIES)].astype(np.float32) for _ in range(2))
    noise = rng.standard_normal(one.shape).astype(np.float32) / (2 * one.shape[1] ** 0.5)
    queries = np.where(np.arange(QUERIES)[:, None] % 2, one + noise, one + other)
    return queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-6)


def _write(built: "faiss.Index", file: Path) -> str:
    """Write FAISS's index to `file`, whole and lasting; its SHA-256."""
    import faiss

    try:
        faiss.write_index(built, str(file))
    except RuntimeError as error:
        file.unlink(missing_ok=True)
        what = f"cannot write {file} ({str(error).rpartition(':')[2].strip()})"
        raise VlmkitError(what, "free some space; until then searches are exact") from None
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()
