"""index: vectors for FAISS and records in SQLite, committed together.

An index is a folder. `index.sqlite` holds the records, each with its slot, and the state: model, dimension, number of
slots, generation, and which slots are live. `vectors-GENERATION.f16` holds the vectors, slot after slot, as
little-endian float16; it only grows. The SQLite transaction is the commit: bytes behind the last committed slot mean
nothing and are written over. A replaced or removed record leaves a dead slot; when these outnumber the live ones the
vectors are rewritten as a new generation. `ann-NUMBER.faiss` is derived: FAISS's approximate index over the first
slots. A search asks it for candidates, looks through the slots after those exactly, and scores both by the stored
vectors, so nothing is ever missing because a rebuild is due. Files that the committed state does not name are orphans
of a killed writer, and the next one deletes them.

store: the folder, the database, its errors. reader, writer: records out and in. types: exact search and the
approximate indexes, by name. ann: search by an approximate index; maintenance builds it. where, prune, verify: what
their names say. base: what a search asks of any index; parts: several folders as one; vector_stores: indexes elsewhere;
opening: which of these a name means.
"""

from vlmkit.index.base import Hit, NoIndex, VectorIndex
from vlmkit.index.reader import Index
from vlmkit.index.store import State, index_folder
from vlmkit.index.writer import Writer, decode_records

__all__ = ["Hit", "Index", "NoIndex", "State", "VectorIndex", "Writer", "decode_records", "index_folder"]
