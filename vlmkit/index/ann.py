"""Search by the approximate index: its file as it was committed, candidates from it, the exact cosines of those."""

import hashlib
import os
from pathlib import Path

import numpy as np

from vlmkit.index.store import AnnInfo, ann_path, damaged
from vlmkit.index.types import flat, load_type
from vlmkit.index.types.faiss_index import FaissIndex, Found

RESERVE = 32  # candidates for each result wanted, where the codes are lossy: 10 lose 3 to 7% of 10,000,000 vectors
BUILD_AGAIN = "vlmkit index --type auto -i INDEX builds it again"


class AnnIndex:
    """A committed approximate index, held open: the file stays readable when a writer replaces it.

    Raises FileNotFoundError where a writer has just replaced it.
    """

    def __init__(self, folder: Path, info: AnnInfo) -> None:
        self.info = info
        self._folder = folder
        self._path = ann_path(folder, info.number)
        self._file = self._path.open("rb")
        self._index: FaissIndex | None = None

    def close(self) -> None:
        self._index = None
        self._file.close()

    def check(self, *, thorough: bool) -> None:
        """Raise VlmkitError unless the file is the one that was written. With `thorough` read it in any case."""
        found, info = os.fstat(self._file.fileno()), self.info
        same = (found.st_size, found.st_mtime_ns) == (info.size, info.mtime_ns)
        if found.st_size != info.size or ((thorough or not same) and self._digest() != info.checksum):
            raise damaged(self._folder, f"{self._path.name} has changed", BUILD_AGAIN)

    def _digest(self) -> str:
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()

    def load(self, dim: int) -> FaissIndex:
        """FAISS's index, with the search effort that was measured to be enough. Raises VlmkitError."""
        if self._index is None:
            self.check(thorough=False)
            try:
                path = f"/dev/fd/{self._file.fileno()}"
                index = load_type(self.info.type).read(path, self.info.factory)
            except (RuntimeError, MemoryError) as error:
                raise damaged(self._folder, f"FAISS cannot read it ({str(error)[-80:]})", BUILD_AGAIN) from None
            if (index.dim, index.count) != (dim, self.info.covered):
                raise damaged(self._folder, f"{self._path.name} holds other vectors", BUILD_AGAIN)
            index.set_search_effort(self.info.search_effort)
            self._index = index
        return self._index

    def search(self, vectors: np.ndarray, queries: np.ndarray, k: int, live: np.ndarray | None) -> Found:
        """The k best of the live slots for each query (N x D float32): `vectors` are all S, `live` S booleans.

        The slots that came after the index was built are searched exactly, and so is everything for a query that has
        too few live candidates. Scores are cosines.
        """
        scores, slots = self._candidates(queries, k, live)
        if not self.load(queries.shape[1]).gives_cosines:
            scores = _cosines(vectors, queries, slots)
        tail = vectors[self.info.covered :]
        tail_live = None if live is None else live[self.info.covered :]
        count = min(k, len(tail) if tail_live is None else int(np.count_nonzero(tail_live)))
        if count:
            near, rows = flat.search(tail, queries, count, tail_live)
            scores, slots = np.hstack([scores, near]), np.hstack([slots, rows + self.info.covered])
        if slots.shape[1] > k:
            scores, slots = flat.best(scores, slots, k)
        short = np.flatnonzero((slots < 0).any(1))
        if len(short):
            scores[short], slots[short] = flat.search(vectors, queries[short], k, live)
        return scores, slots

    def _candidates(self, queries: np.ndarray, k: int, live: np.ndarray | None) -> Found:
        """Scores by the codes and slots (N x C) near each query, -1 in place of dead ones."""
        index, covered = self.load(queries.shape[1]), self.info.covered
        wanted = k if index.is_lossless else RESERVE * k
        if live is None:
            return index.search(queries, min(covered, wanted))
        alive = max(1, int(np.count_nonzero(live[:covered])))
        scores, slots = index.search(queries, min(covered, -(-wanted * covered // alive) + k))
        there = live[slots] & (slots >= 0)
        return np.where(there, scores, -np.inf), np.where(there, slots, -1)


def _cosines(vectors: np.ndarray, queries: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """The cosine of each query (N x D) with the stored vectors in its slots (N x C); -inf for slot -1."""
    scores = np.full(slots.shape, -np.inf, np.float32)
    for query, row, out in zip(queries, slots, scores, strict=True):
        there = row >= 0
        out[there] = vectors[row[there]].astype(np.float32) @ query
    return scores
