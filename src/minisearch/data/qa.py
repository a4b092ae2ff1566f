"""Questions and passages in the format of FlashRAG, which Search-R1 shares.

Questions are few enough to be a list of rows; a corpus is read as a stream, a passage at a time.

Source: FlashRAG (arXiv 2405.13576), Search-R1 (arXiv 2503.09516), the published files.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

from minisearch.data.tables import _no_rows, _parse, _unreadable
from minisearch.errors import InputError
from minisearch.storage import atomic_write


class Document(TypedDict):
    """One passage; `contents` is its title in double quotes, a line break, and the text."""

    id: str
    contents: str


class Question(TypedDict):
    """One question; any of `golden_answers` is right, `metadata` differs between data sets.

    Where the passages that answer it are known, `metadata["hops"]` is a list of `Hop`.
    """

    id: str
    question: str
    golden_answers: list[str]
    metadata: dict[str, Any]


class Hop(TypedDict):
    """One step of a question: what it asks, its answer, and the ids of passages that state it."""

    question: str
    answer: str
    gold_ids: list[str]


def title_of(document: Document) -> str:
    """The title: the first line of the contents, without its quotes."""
    return document["contents"].partition("\n")[0].strip().strip('"')


def body_of(document: Document) -> str:
    """The contents without the title's line."""
    return document["contents"].partition("\n")[2].strip()


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """Read a file of questions: FlashRAG's rows, or Search-R1's training rows.

    A row with a column `reward_model` is Search-R1's: its answers are the target that is scored,
    and its id starts with the data source, as two sources number their rows alike. MuSiQue's
    decomposition becomes `metadata["hops"]`, without `gold_ids`, since its paragraphs are not
    passages of the corpus. HotpotQA and 2Wiki name supporting titles but no steps: they stay in
    `metadata["supporting_facts"]`. Blank aliases are dropped; unknown columns are ignored.

    Args:
        path: a `.jsonl`, `.jsonl.gz` or `.parquet` file.
        limit: read only this many rows.

    Raises:
        InputError: naming the file and, where there is one, the row (from 1) and column at fault.
    """
    first: dict[str, int] = {}
    questions = []
    for number, row in enumerate(islice(_rows(path), limit), 1):
        where = f"{path}, row {number}"
        read = _search_r1 if isinstance(row, dict) and "reward_model" in row else _flashrag
        questions.append(read(row, where))
        before = first.setdefault(questions[-1]["id"], number)
        if before != number:
            found = f"{questions[-1]['id']!r}, which row {before} has already"
            remedy = "give each question its own id; read data sets from separate files."
            raise InputError(f"{where}, column id", found, "an id of its own", remedy)
    return questions


def read_corpus(path: Path) -> Iterator[Document]:
    """The passages of a corpus in file order, read as they are asked for.

    Nothing is kept, so that ids are not compared with one another.

    Args:
        path: a `.jsonl`, `.jsonl.gz` or `.parquet` file.

    Raises:
        InputError: naming the file and, where there is one, the row (from 1) and column at fault.
    """
    for number, row in enumerate(_rows(path), 1):
        where = f"{path}, row {number}"
        contents = _field(row, "contents", str, where)
        title, line_break, _ = contents.partition("\n")
        if not line_break or title.strip() in ("", '""'):
            found, at = f"{contents[:60]!r}", f"{where}, column contents"
            expected = "a line with the title, then the text"
            remedy = 'store each passage as its title in double quotes, "\\n", and its text.'
            raise InputError(at, found, expected, remedy)
        yield {"id": _id(row, where), "contents": contents}


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write questions or passages, one JSON object a line, compressed where `path` ends in `.gz`.

    Raises:
        InputError: where the file cannot be written; it then is as it was.
    """
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    atomic_write(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _flashrag(row: Any, where: str) -> Question:
    return {
        "id": _id(row, where),
        "question": _field(row, "question", str, where).strip(),
        "golden_answers": _answers(row, "golden_answers", where),
        "metadata": _metadata(row, where),
    }


def _search_r1(row: Any, where: str) -> Question:
    source = _field(row, "data_source", str, where)
    truth = _field(_field(row, "reward_model", dict, where), "ground_truth", dict, where)
    if "id" in row:
        name = _id(row, where)
    else:
        extra = _field(row, "extra_info", dict, where)
        name = f"{_field(extra, 'split', str, where)}_{_field(extra, 'index', int, where)}"
    asked = _field(row, "question", str, where) if "question" in row else _asked(row, where)
    return {
        "id": f"{source}/{name}",
        "question": asked.strip(),
        "golden_answers": _answers(truth, "target", f"{where}, column reward_model"),
        "metadata": {**_metadata(row, where), "data_source": source},
    }


def _asked(row: Any, where: str) -> str:
    """The question at the end of a prompt."""
    turns = _field(row, "prompt", list, where)
    content = _field(turns[-1] if turns else {}, "content", str, f"{where}, column prompt")
    question = content.rpartition("Question:")[2]
    if question == content or not question.strip():
        remedy = "add the column question, or end the prompt with `Question: ...`."
        raise InputError(f"{where}, column prompt", f"{content[-60:]!r}", "a question", remedy)
    return question


def _answers(row: Any, name: str, where: str) -> list[str]:
    answers = _field(row, name, list, where)
    kept = [answer for answer in answers if not isinstance(answer, str) or answer.strip()]
    if not kept or not all(isinstance(answer, str) for answer in kept):
        expected = "at least one answer, all of them text"
        remedy = "list the accepted answers as text, or leave the question out."
        raise InputError(f"{where}, column {name}", repr(answers)[:80], expected, remedy)
    return kept


def _metadata(row: Any, where: str) -> dict[str, Any]:
    """The metadata without what parquet had to fill in, and the hops where they are given."""
    if row.get("metadata") is None:
        return {}
    metadata = {k: v for k, v in _field(row, "metadata", dict, where).items() if v is not None}
    inner = metadata.get("metadata")  # MuSiQue's training file has one level more
    holder = inner if isinstance(inner, dict) else metadata
    if holder.get("question_decomposition"):
        where += ", column metadata"
        steps = _field(holder, "question_decomposition", list, where)
        metadata["hops"] = _hops(steps, f"{where}, column question_decomposition")
    return metadata


def _hops(steps: list[Any], where: str) -> list[Hop]:
    """MuSiQue's steps, each `#n` replaced by the answer of step n."""
    hops: list[Hop] = []
    known: dict[str, str] = {}
    for number, step in enumerate(steps, 1):
        asked = _field(step, "question", str, where)
        question = re.sub(r"#(\d+)", lambda match: known.get(match[1], match[0]), asked)
        known[str(number)] = _field(step, "answer", str, where)
        hops.append({"question": question, "answer": known[str(number)], "gold_ids": []})
    return hops


def _id(row: Any, where: str) -> str:
    return str(_field(row, "id", str | int, where))


def _field(row: Any, name: str, kind: Any, where: str) -> Any:
    """A column's value. Raises: InputError where it is missing, of another type, or blank."""
    if not isinstance(row, dict):
        raise InputError(where, f"a {type(row).__name__}", "a JSON object", "write one a line.")
    at, value, wanted = f"{where}, column {name}", row.get(name), getattr(kind, "__name__", kind)
    if name not in row:
        found = f"only {', '.join(map(str, row)) or 'an empty object'}"
        raise InputError(at, found, f"a column {name}", "add or rename the column in every row.")
    if not isinstance(value, kind) or isinstance(value, bool):
        found = f"{repr(value)[:60]} ({type(value).__name__})"
        raise InputError(at, found, str(wanted), f"store {name} as {wanted} in every row.")
    if isinstance(value, str) and not value.strip():
        raise InputError(at, "empty text", "text", "fill it in, or leave the row out.")
    return value


def _rows(path: Path) -> Iterator[Any]:
    """The rows of a file, parsed. Raises: InputError where it is missing, empty or damaged."""
    number = 0
    try:
        for row in _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path):
            number += 1
            yield row
    except OSError as error:
        raise _unreadable(path, error) from error
    except (EOFError, zlib.error, ValueError) as error:  # a ValueError is pyarrow's
        remedy = "the file is cut off or damaged: fetch it again."
        raise InputError(str(path), str(error), f"a complete {path.suffix} file", remedy) from error
    if not number:
        raise _no_rows(path)


def _json_rows(path: Path) -> Iterator[Any]:
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            yield _parse(line.rstrip(b"\r\n"), f"{path}, row {number}")


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()
