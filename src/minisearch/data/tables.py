"""Typed JSON Lines and parquet files to columns in memory, with errors that name row and column.

The fast path parses blocks of lines with pyarrow. A block it refuses, or in which it had to fill a
gap, is read again line by line; that pass is exact and either raises the error or returns the rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minisearch.errors import InputError
from minisearch.records import Ragged, Table, check_row, row_count, select_rows

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BYTES = 1 << 24
CHUNK_ROWS = 20_000


def arrow_schema(schema: Mapping[str, Any]) -> pa.Schema:
    """The arrow form of one schema of `records.SCHEMAS`; nested objects stay nested."""
    import pyarrow as pa

    kinds: dict[Any, Any] = {int: pa.int64(), float: pa.float64(), str: pa.large_string()}

    def kind(of: Any) -> pa.DataType:
        if isinstance(of, dict):
            return pa.struct([(name, kind(inner)) for name, inner in of.items()])
        return pa.list_(pa.int64()) if of == list[int] else kinds[of]

    return pa.schema([(name, kind(of)) for name, of in schema.items()])


def read_table(
    path: Path, schema: Mapping[str, Any], optional: tuple[str, ...] = (), limit: int | None = None
) -> Table:
    """Read one file as columns.

    Args:
        path: a `.jsonl` or `.parquet` file.
        schema: the columns the file must have, one value of `records.SCHEMAS`.
        optional: columns that the file may lack; they are then missing from the result.
        limit: read only this many rows.

    Raises:
        InputError: naming the file and, where there is one, the row (from 1) and column at fault.
    """
    import pyarrow as pa

    read = read_parquet if path.suffix == ".parquet" else read_jsonl
    batches, rows = [], 0
    for batch in read(path, schema, optional):
        batches.append(batch if limit is None else batch.slice(0, limit - rows))
        rows += len(batches[-1])
        if rows == limit:
            break
    return _columns(pa.concat_tables(batches))


def read_jsonl(
    path: Path, schema: Mapping[str, Any], optional: tuple[str, ...] = ()
) -> Iterator[pa.Table]:
    """The rows of a JSON Lines file, some megabytes at a time. Raises: as `read_table`."""
    rows = 0
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES) + file.readline():
                if not rows:
                    schema = _without_absent(block, schema, optional)
                batch = _fast(block, schema)
                yield batch if batch is not None else _exact(block, schema, path, rows)
                rows += _line_count(block)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not rows:
        raise _no_rows(path)


def read_parquet(
    path: Path, schema: Mapping[str, Any], optional: tuple[str, ...] = ()
) -> Iterator[pa.Table]:
    """The rows of a parquet file as `data_scripts/` write it. Raises: as `read_table`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    except pa.ArrowInvalid as error:
        again = "the file is cut off or damaged: convert it again."
        raise InputError(str(path), str(error), "a complete parquet file", again) from error
    found = file.schema_arrow
    wanted = arrow_schema(
        {k: v for k, v in schema.items() if k in found.names or k not in optional}
    )
    for field in wanted:
        if field.name not in found.names or found.field(field.name).type != field.type:
            kind = found.field(field.name).type if field.name in found.names else "no such column"
            where = f"{path}, column {field.name}"
            raise InputError(where, str(kind), str(field.type), "convert the file again.")
    if not file.metadata.num_rows:
        raise _no_rows(path)
    for batch in file.iter_batches(columns=wanted.names):
        yield pa.Table.from_batches([batch]).select(wanted.names)


def write_jsonl(path: Path, table: Table, schema: Mapping[str, Any]) -> None:
    """Write columns as JSON Lines, dotted columns nested again, text as UTF-8."""
    import pyarrow.compute as compute

    with open(path, "wb") as file:
        for start in range(0, row_count(table), CHUNK_ROWS):
            part = select_rows(table, slice(start, start + CHUNK_ROWS))
            lines = compute.binary_join_element_wise(*_pieces(part, schema), "}\n", "")
            file.write("".join(lines.to_pylist()).encode())


def _pieces(table: Table, schema: Mapping[str, Any], outer: str = "") -> Iterator[Any]:
    """What a line consists of, in order: constant text, and arrays with one text a row."""
    before = "{"
    for name, kind in schema.items():
        if isinstance(kind, dict):
            yield f'{before}"{name}": '
            yield from _pieces(table, kind, f"{name}.")
            yield "}"
        elif outer + name in table:
            yield f'{before}"{name}": '
            yield _json(table[outer + name])
        before = ", "


def _json(column: Any) -> pa.Array:
    """Each value of a column as JSON text."""
    import pyarrow as pa
    import pyarrow.compute as compute

    if isinstance(column, Ragged):
        offsets = pa.array(column.offsets.astype(np.int32))
        values = pa.array(column.values).cast(pa.string())
        joined = compute.binary_join(pa.ListArray.from_arrays(offsets, values), ", ")
        return compute.binary_join_element_wise("[", joined, "]", "")
    if column.dtype.kind == "i":
        return pa.array(column).cast(pa.string())
    # pyarrow would write 5990.0 as 5990, which other readers take for an integer
    encode = json.JSONEncoder(ensure_ascii=False).encode
    return pa.array([encode(value) for value in column.tolist()], pa.string())


def _line_count(block: bytes) -> int:
    return block.count(b"\n") + (not block.endswith(b"\n"))


def _without_absent(
    block: bytes, schema: Mapping[str, Any], optional: tuple[str, ...]
) -> Mapping[str, Any]:
    """The schema without the optional columns that the first row lacks."""
    try:
        first = json.loads(block.split(b"\n", 1)[0])
    except ValueError:
        return schema  # the parser that follows names what is wrong
    return {c: kind for c, kind in schema.items() if c in first or c not in optional}


def _fast(block: bytes, schema: Mapping[str, Any]) -> pa.Table | None:
    """The block parsed by pyarrow, or None where the exact pass has to look."""
    import pyarrow as pa
    import pyarrow.json as arrow_json

    try:
        block.decode("utf-8")  # pyarrow does not check
        batch = arrow_json.read_json(
            pa.BufferReader(block),
            arrow_json.ReadOptions(block_size=1 << 20),
            arrow_json.ParseOptions(arrow_schema(schema), unexpected_field_behavior="error"),
        )
    except (UnicodeDecodeError, pa.ArrowInvalid):
        return None
    return batch if batch.num_rows == _line_count(block) and _complete(batch) else None


def _complete(batch: pa.Table) -> bool:
    """Whether no value is missing, nor a number NaN: pyarrow fills what a row lacks with null."""
    import pyarrow as pa
    import pyarrow.compute as compute

    for column in batch.flatten().columns:
        values = compute.list_flatten(column) if pa.types.is_list(column.type) else column
        if column.null_count or values.null_count:
            return False
        if pa.types.is_floating(values.type) and not compute.all(compute.is_finite(values)).as_py():
            return len(values) == 0
    return True


def _exact(block: bytes, schema: Mapping[str, Any], path: Path, before: int) -> pa.Table:
    """The block parsed line by line; `before` rows of the file came before it."""
    import pyarrow as pa

    rows = []
    for number, line in enumerate(block.removesuffix(b"\n").split(b"\n"), before + 1):
        where = f"{path}, row {number}"
        rows.append(_parse(line, where))
        check_row(rows[-1], schema, where)
    return pa.Table.from_pylist(rows, arrow_schema(schema))


def _parse(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02X} at position {error.start}, which is not UTF-8"
        remedy = "store the file as UTF-8, e.g. with `iconv -f GB18030 -t UTF-8`."
        raise InputError(where + _column(line[: error.start]), found, "UTF-8", remedy) from error
    except json.JSONDecodeError as error:
        tail = line[-30:].decode("utf-8", "replace")
        found = f"a line that is cut off or no JSON ({error.msg}; it ends with {tail!r})"
        remedy = "repair the line; where it is the file's last, fetch or write the file again."
        expected = "one complete JSON object a line"
        raise InputError(where + _column(line), found, expected, remedy) from error


def _column(before: bytes) -> str:
    """Where a broken line broke: the last column name in what could be read."""
    names = re.findall(rb'"(\w+)"\s*:', before)
    return f", column {names[-1].decode()}" if names else ""


def _columns(batch: pa.Table) -> Table:
    """Arrow columns as numpy arrays of their own memory, nested objects flattened."""
    import pyarrow as pa

    table: Table = {}
    for name, column in zip(batch.flatten().column_names, batch.flatten().columns, strict=True):
        if pa.types.is_list(column.type):
            chunks = column.chunks
            lengths = np.concatenate([np.asarray(c.value_lengths(), np.int64) for c in chunks])
            values = np.concatenate([np.asarray(c.flatten(), np.int64) for c in chunks])
            table[name] = Ragged(values, np.concatenate([[0], np.cumsum(lengths)]))
        elif pa.types.is_large_string(column.type):
            table[name] = _text(column)
        else:
            table[name] = np.concatenate([np.asarray(chunk) for chunk in column.chunks])
    return table


def _text(column: pa.ChunkedArray) -> np.ndarray:
    """An object array in which equal texts are one object, as most columns repeat themselves."""
    known: dict[str, str] = {}
    parts = []
    for chunk in column.chunks:
        coded = chunk.dictionary_encode()
        distinct = [known.setdefault(text, text) for text in coded.dictionary.to_pylist()]
        parts.append(np.array(distinct, dtype=object)[np.asarray(coded.indices)])
    return np.concatenate(parts)


def _no_rows(path: Path) -> InputError:
    return InputError(str(path), "no rows", "at least one row", "fetch or write the file again.")


def _unreadable(path: Path, error: OSError) -> InputError:
    found = error.strerror or str(error)
    return InputError(
        str(path), found, "a file that can be read", "check its path and permissions."
    )
