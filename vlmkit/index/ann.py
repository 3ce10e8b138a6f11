"""The approximate index: open the file of a committed one, and draw candidates from it.

FAISS maps the file, so opening it takes the same time at any size. FAISS's reader and the searches trust the
file, so it is handed over only while it is, by size and time, the one that was written, or else has its SHA-256.
"""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit.index.exact import Found
from vlmkit.index.store import Built, built_path, damaged
from vlmkit.index.types import is_lossless

if TYPE_CHECKING:
    import faiss
    import numpy as np

EFFORTS = ("nprobe", "efSearch")  # what makes a search more thorough: of IVF, of HNSW
BY_QUERIES, BY_LISTS = 0, 1  # how FAISS shares a search of IVF out among the cores
RESERVE = 10  # candidates for each result wanted, where the codes are lossy
REBUILD = "vlmkit index --type auto -i INDEX builds it again"


class Approximate:
    """An approximate index held open: the file stays readable when a writer replaces it."""

    def __init__(self, folder: Path, built: Built) -> None:
        """Raises FileNotFoundError where a writer has just replaced it."""
        self.built = built
        self._folder = folder
        self._file = built_path(folder, built.number).open("rb")
        self._index: faiss.Index | None = None
        self._ivf: faiss.IndexIVF | None = None
        self.scores_are_cosines = False

    def close(self) -> None:
        self._index = self._ivf = None
        self._file.close()

    def check(self, *, thorough: bool) -> None:
        """Raise VlmkitError unless the file is the one that was written. With `thorough` read it in any case."""
        found, built = os.fstat(self._file.fileno()), self.built
        same = (found.st_size, found.st_mtime_ns) == (built.size, built.mtime_ns)
        if found.st_size != built.size or ((thorough or not same) and self._digest() != built.checksum):
            raise damaged(self._folder, f"{built_path(self._folder, built.number).name} has changed", REBUILD)

    def _digest(self) -> str:
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()

    def opened(self, dim: int) -> "faiss.Index":
        """FAISS's index, mapped, with the effort that was measured to be enough. Raises VlmkitError."""
        import faiss

        if self._index is None:
            self.check(thorough=False)
            try:
                index = faiss.read_index(f"/dev/fd/{self._file.fileno()}", faiss.IO_FLAG_MMAP_IFC)
            except (RuntimeError, MemoryError) as error:
                raise damaged(self._folder, f"FAISS cannot read it ({str(error)[-80:]})", REBUILD) from None
            if (index.d, index.ntotal) != (dim, self.built.covered):
                raise damaged(self._folder, f"ann-{self.built.number}.faiss is of other vectors", REBUILD)
            set_effort(index, self.built.effort)
            self._index, self._ivf = index, faiss.try_extract_index_ivf(index)
            self.scores_are_cosines = _holds_vectors(index)
        return self._index

    def candidates(self, queries: "np.ndarray", k: int, live: "np.ndarray | None") -> Found:
        """FAISS's scores and slots (N x C) near each query (N x D float32), -1 in place of dead ones."""
        import numpy as np

        index = self.opened(queries.shape[1])
        covered = self.built.covered
        alive = covered if live is None else int(np.count_nonzero(live[:covered]))
        share = RESERVE * k if not is_lossless(self.built.factory) else k
        count = min(covered, -(-share * covered // max(alive, 1)) + (0 if live is None else k))
        scores, slots = self._drawn(index, queries, count)
        if live is None:
            return scores, slots
        there = live[slots] & (slots >= 0)
        return np.where(there, scores, -np.inf), np.where(there, slots, -1)

    def _drawn(self, index: "faiss.Index", queries: "np.ndarray", count: int) -> Found:
        """What FAISS finds; all cores look for a lone query, where that leaves nothing to chance.

        They finish in any order, and of equal scores at the end the first to come are kept.
        """
        if self._ivf is not None and len(queries) == 1:
            self._ivf.parallel_mode = BY_LISTS
            scores, slots = index.search(queries, count + 1)
            self._ivf.parallel_mode = BY_QUERIES
            if scores[0, -2] > scores[0, -1]:
                return scores[:, :-1], slots[:, :-1]
        return index.search(queries, count)


def _holds_vectors(index: "faiss.Index") -> bool:
    """Whether the codes are the stored numbers themselves, so that scores by them are the cosines."""
    import faiss

    codes = faiss.downcast_index(index.storage) if hasattr(index, "storage") else index
    quantizer = getattr(codes, "sq", None)
    return quantizer is not None and quantizer.qtype == quantizer.QT_fp16 and not getattr(codes, "by_residual", False)


def effort_of(index: "faiss.Index") -> str | None:
    """The name of the parameter that makes searches of this index more thorough, if it has one."""
    import faiss

    space = faiss.ParameterSpace()
    for name in EFFORTS:
        try:
            space.set_index_parameter(index, name, 1)
            return name
        except RuntimeError:
            continue
    return None


def set_effort(index: "faiss.Index", effort: int) -> None:
    """Set nprobe or efSearch; 0 leaves what FAISS takes by itself."""
    import faiss

    if effort and (name := effort_of(index)):
        faiss.ParameterSpace().set_index_parameter(index, name, effort)
