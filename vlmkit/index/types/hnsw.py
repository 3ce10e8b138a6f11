"""hnsw: a graph of neighbours (Malkov and Yashunin 2016) over the float16 vectors."""

from vlmkit.index.types.faiss_index import FaissIndex


class Hnsw(FaissIndex):
    @classmethod
    def factory(cls, name: str, count: int, dim: int) -> str:
        return "HNSW32,SQfp16"
