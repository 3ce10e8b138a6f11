"""A type of index."""

from vlmkit.index.types.faiss_index import FaissIndex


class SmallGraph(FaissIndex):
    """A graph with few links for each vector."""

    @classmethod
    def factory(cls, name, count, dim):
        return "HNSW8,Flat"
