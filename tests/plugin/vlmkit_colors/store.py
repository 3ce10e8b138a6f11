"""A vector store: a pickled dictionary of ids and rows."""

import os
import pickle

import numpy as np

from vlmkit.index.base import Hit, NoIndex
from vlmkit.index.where import explain, predicate


class Pickled:
    def __init__(self, address):
        if not os.path.exists(address):
            raise NoIndex(f"no file {address}", "fill it with vlmkit index --to")
        self.name, self._file = f"pickled:{address}", address
        with open(address, "rb") as file:
            self.model, self.dim, self.rows = pickle.load(file)

    @classmethod
    def create(cls, address, model, dim):
        if not os.path.exists(address):
            with open(address, "wb") as file:
                pickle.dump((model, dim, {}), file)
        return cls(address)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __len__(self):
        return len(self.rows)

    def fetch(self, keys):
        return {key: self.rows[key] for key in keys if key in self.rows}

    def upsert(self, rows):
        self.rows |= {row.record["id"]: row for row in rows}
        with open(self._file, "wb") as file:
            pickle.dump((self.model, self.dim, self.rows), file)

    def search(self, queries, k, among=None):
        keys = list(self.rows) if among is None else among
        scores = queries @ self.vectors_at(keys).T
        return [
            [Hit(float(row[i]), self.rows[keys[i]].record, keys[i]) for i in np.argsort(-row)[:k]] for row in scores
        ]

    def where(self, conditions):
        meets = predicate(conditions)
        return [key for key, row in self.rows.items() if meets(row.record)]

    def explain(self, conditions):
        return explain((row.record for row in self.rows.values()), conditions)

    def slot_of(self, key):
        return key if key in self.rows else None

    def vectors_at(self, slots):
        return np.array([self.rows[key].vector for key in slots], np.float32).reshape(len(slots), self.dim)

    def sample(self, count):
        return self.vectors_at(list(self.rows)[:count])
