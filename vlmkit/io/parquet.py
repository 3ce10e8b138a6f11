"""Records as a Parquet file: the fields are its columns, the vector a list of float32."""

import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import orjson

from vlmkit.errors import check_installed
from vlmkit.io.records import Record, dumps, to_float16
from vlmkit.io.tables import EMBEDDING

if TYPE_CHECKING:
    import pyarrow

    from vlmkit.io.terminal import Output

GROUP = 8192  # rows of a row group
COPY_BYTES = 1 << 20
METADATA = b"vlmkit"  # the key of what is known of the vectors


def write_parquet(records: Iterable[Record], out: "Output", folder: str | None = None) -> list[str]:
    """Write `records` to `out` in bounded memory: they wait in a file in `folder` until all columns are known.

    Returns the columns that are written as JSON: their values are of several kinds, or objects without fields. The
    file's metadata have under `vlmkit` the model of the vectors, their number of values and their metric. Raises
    VlmkitError without pyarrow, OSError.
    """
    check_installed("a Parquet file", "vlmkit[parquet]", "pyarrow")
    from pyarrow.parquet import ParquetWriter

    with tempfile.TemporaryFile(dir=folder) as waiting, tempfile.TemporaryFile(dir=folder) as made:
        for record in records:
            waiting.write(dumps(record))
        known: dict[str, Any] = {}
        types: dict[str, Any] = {}  # by column; None for values of several kinds
        for rows in _groups(waiting):
            known = known or _known(rows)
            for name in dict.fromkeys(name for row in rows for name in row):
                types[name] = _type([row.get(name) for row in rows], name, types)
        schema = _schema(types, known)
        with ParquetWriter(made, schema, compression="zstd") as writer:
            for rows in _groups(waiting):
                writer.write_table(_table(rows, schema, types))
        made.seek(0)
        while chunk := made.read(COPY_BYTES):
            out.write(chunk)
    return [name for name, kind in types.items() if kind is None]


def _groups(lines: IO[bytes]) -> Iterator[list[Record]]:
    lines.seek(0)
    while rows := [orjson.loads(line) for line in islice(lines, GROUP)]:
        yield rows


def _known(rows: list[Record]) -> dict[str, Any]:
    row = next((row for row in rows if row.get(EMBEDDING) is not None), None)
    if row is None:
        return {}
    return {"model": row.get("model"), "dim": len(to_float16(row[EMBEDDING])), "metric": "cosine"}


def _type(values: list[Any], name: str, types: dict[str, Any]) -> "pyarrow.DataType | None":
    """The type of a column whose earlier values are of `types[name]`, and None where there is none for all."""
    import pyarrow

    if name == EMBEDDING:
        return pyarrow.list_(pyarrow.float32())
    if types.get(name, "") is None:
        return None
    try:
        fields = [types[name]] if name in types else []
        fields.append(pyarrow.array(values).type)
        schemas = [pyarrow.schema([(name, kind)]) for kind in fields]
        found = pyarrow.unify_schemas(schemas, promote_options="permissive").field(name).type
    except (pyarrow.ArrowException, OverflowError):
        return None
    return None if _has_empty_struct(found) else found


def _has_empty_struct(kind: "pyarrow.DataType") -> bool:
    """Whether an object without fields is a part of it, which Parquet cannot hold."""
    from pyarrow import types

    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return (types.is_struct(kind) and not inner) or any(map(_has_empty_struct, inner))


def _schema(types: dict[str, Any], known: dict[str, Any]) -> "pyarrow.Schema":
    import pyarrow

    fields = [(name, pyarrow.string() if kind is None else kind) for name, kind in types.items()]
    return pyarrow.schema(fields, metadata={METADATA: orjson.dumps(known)} if known else None)


def _table(rows: list[Record], schema: "pyarrow.Schema", types: dict[str, Any]) -> "pyarrow.Table":
    import pyarrow

    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if field.name == EMBEDDING:
            values = [None if value is None else to_float16(value).astype("f4") for value in values]
        elif types[field.name] is None:
            values = [None if value is None else orjson.dumps(value).decode() for value in values]
        columns.append(pyarrow.array(values, field.type))
    return pyarrow.table(columns, schema=schema)
