"""Bad data files: one error that names file, row, column, found, expected and remedy."""

from __future__ import annotations

import errno
import json
import os

import kuaisearch_example as example
import pytest

from minisearch.data import tables
from minisearch.data.kuaisearch import KuaiSearch
from minisearch.errors import InputError


def failure(folder, **options) -> InputError:
    """The error of reading `folder`, which must leave the folder as it was."""
    before = sorted(folder.rglob("*")) if folder.is_dir() else []
    with pytest.raises(InputError) as raised:
        KuaiSearch.read(folder, **options)
    assert (sorted(folder.rglob("*")) if folder.is_dir() else []) == before
    assert raised.value.remedy
    for part in (raised.value.where, raised.value.found, raised.value.expected):
        assert part in str(raised.value)
    return raised.value


def changed(tmp_path, table, row, **values):
    """A data set with some values of one row replaced; `...` takes the column out."""
    rows = example.rows()
    rows[table][row].update(values)
    rows[table][row] = {k: v for k, v in rows[table][row].items() if v is not ...}
    return example.put(tmp_path, rows)


def test_a_missing_folder(tmp_path):
    error = failure(tmp_path / "nowhere")
    assert error.where == str(tmp_path / "nowhere")
    assert error.found == "no such folder"


def test_a_file_for_a_folder(tmp_path):
    (tmp_path / "users.jsonl").write_text("{}")
    assert failure(tmp_path / "users.jsonl").found == "a file"


def test_an_empty_folder(tmp_path):
    error = failure(tmp_path)
    assert error.where.endswith("users/train.jsonl")
    assert error.found == "no such file"
    assert "data_scripts/kuaisearch.py" in error.remedy


@pytest.mark.parametrize(("table", "hint"), [("items", False), ("rank", True)])
def test_a_missing_file(tmp_path, table, hint):
    folder = example.put(tmp_path, example.rows())
    (folder / table / "train.jsonl").unlink()
    error = failure(folder)
    assert error.where == str(folder / table / "train.jsonl")
    assert error.expected == f"the {table} table"
    assert ("leave rank out of `tables`" in error.remedy) is hint


def test_files_of_two_editions(tmp_path):
    example.put(tmp_path, example.rows())
    example.put(tmp_path, example.rows(), "{}_lite/train.jsonl")
    error = failure(tmp_path)
    assert error.found == "full and lite files"
    assert "own folder" in error.remedy


def test_an_unknown_table(tmp_path):
    error = failure(tmp_path, tables=["item"])
    assert error.found == "'item'"
    assert "items" in error.remedy


@pytest.mark.parametrize(
    ("table", "row", "values", "column", "found", "expected"),
    [
        ("items", 16, {"item_id": "116"}, "item_id", "'116' (str)", "int"),
        ("items", 4, {"brand_id": 1.5}, "brand_id", "1.5 (float)", "int"),
        ("items", 2, {"item_title": None}, "item_title", "None (NoneType)", "str"),
        ("users", 1, {"gender": 1}, "gender", "1 (int)", "str"),
        ("recall", 3, {"clicked_item_ids": 5}, "clicked_item_ids", "5 (int)", "list[int]"),
        ("recall", 3, {"clicked_item_ids": [None]}, "clicked_item_ids", "[None]", "list[int]"),
        ("rank", 70, {"is_clicked": True}, "is_clicked", "True (bool)", "int"),
        ("rank", 7, {"target_item_price": "5"}, "target_item_price", "'5' (str)", "float"),
        ("rank", 7, {"target_item_price": float("nan")}, "target_item_price", "nan", "float"),
        ("users", 4, {"age_bucket": ..., "age": 3}, "age_bucket", "but age", "age_bucket"),
        ("users", 4, {"age_bucket": ...}, "age_bucket", "no such column", "age_bucket"),
        ("users", 2, {"age": 30}, "age", "an unknown column with value 30", "age_bucket"),
        ("relevance", 9, {"score": ..., "label": 1}, "score", "but label", "score"),
        ("rank", 5, {"user_statistical_features": {}}, "user_show_cnt_30d_hist", "no such", "gmv"),
        ("recall", 5, {"split": "dev"}, "split", "'dev'", "train or test"),
        ("recall", 6, {"user_id": 77}, "user_id", "77", "5 user_id of"),
        ("recall", 6, {"impressed_item_ids": [100, 5]}, "impressed_item_ids", "5", "30 item_id of"),
        ("rank", 12, {"target_item_id": 5}, "target_item_id", "5", "30 item_id of"),
        ("rank", 12, {"session_id": 5}, "session_id", "5", "20 session_id of"),
        ("rank", 12, {"user_id": 5}, "user_id", "5", "5 user_id of"),
        ("items", 8, {"item_id": 107}, "item_id", "107, as in row 8", "an id of its own"),
    ],
)
def test_a_bad_value_is_named_with_its_row_and_column(
    tmp_path, table, row, values, column, found, expected
):
    error = failure(changed(tmp_path, table, row, **values))
    assert error.where.startswith(f"{tmp_path / table / 'train.jsonl'}, row {row + 1}, column ")
    assert error.where.endswith(column)
    assert found in error.found
    assert expected in error.expected


def test_the_row_is_right_beyond_the_first_block(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 700)
    error = failure(changed(tmp_path, "rank", 63, is_clicked="yes"))
    assert ", row 64, column is_clicked" in error.where


@pytest.mark.parametrize("table", ["recall", "rank", "relevance"])
def test_an_empty_split(tmp_path, table):
    rows = example.rows()
    for row in rows[table]:
        row["split"] = "train"
    error = failure(example.put(tmp_path, rows))
    assert (
        error.where == f"{tmp_path / table}/train.jsonl, rows 1 to {len(rows[table])}, column split"
    )
    assert error.found == "no row of 'test'"


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_truncated_last_line(tmp_path, cut):
    path = example.put(tmp_path, example.rows()) / "rank/train.jsonl"
    text = path.read_bytes()
    path.write_bytes(text[: -1 - cut])
    error = failure(tmp_path)
    assert error.where.startswith(f"{path}, row 80, column ")
    assert "cut off" in error.found
    assert "fetch or write the file again" in error.remedy


def test_a_line_that_is_no_json(tmp_path):
    path = example.put(tmp_path, example.rows()) / "users/train.jsonl"
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([*lines[:2], "user_id,gender", *lines[2:]]), "utf-8")
    error = failure(tmp_path)
    assert error.where == f"{path}, row 3"
    assert error.expected == "one complete JSON object a line"


def test_an_empty_line(tmp_path):
    path = example.put(tmp_path, example.rows()) / "users/train.jsonl"
    path.write_text(path.read_text("utf-8").replace("\n", "\n\n", 1), "utf-8")
    assert failure(tmp_path).where == f"{path}, row 2"


def test_two_rows_on_one_line(tmp_path):
    path = example.put(tmp_path, example.rows()) / "users/train.jsonl"
    path.write_text(path.read_text("utf-8").replace("}\n{", "}{", 1), "utf-8")
    assert failure(tmp_path).where.startswith(f"{path}, row 1")


def test_a_line_that_is_no_object(tmp_path):
    path = example.put(tmp_path, example.rows()) / "users/train.jsonl"
    path.write_text("[1, 2]\n" + path.read_text("utf-8"), "utf-8")
    error = failure(tmp_path)
    assert error.where == f"{path}, row 1"
    assert error.expected == "a JSON object"


@pytest.mark.parametrize("encoding", ["gb18030", "gbk"])
def test_a_wrong_encoding(tmp_path, encoding):
    path = example.put(tmp_path, example.rows()) / "items/train.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[5] = lines[5].decode().encode(encoding)
    path.write_bytes(b"".join(lines))
    error = failure(tmp_path)
    assert error.where == f"{path}, row 6, column item_title"
    assert "0xCF" in error.found  # the first byte of 夏 in GBK
    assert error.expected == "UTF-8"
    assert "iconv" in error.remedy


def test_an_empty_file(tmp_path):
    path = example.put(tmp_path, example.rows()) / "recall/train.jsonl"
    path.write_text("")
    error = failure(tmp_path)
    assert (error.where, error.found, error.expected) == (str(path), "no rows", "at least one row")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    folder = example.put(tmp_path, example.rows())
    refuse(monkeypatch, folder / "items/train.jsonl", errno.EACCES)
    error = failure(folder)
    assert error.where == str(folder / "items/train.jsonl")
    assert error.found == "Permission denied"


def test_a_folder_that_is_not_parquet(tmp_path):
    folder = example.put(tmp_path, example.rows())
    (folder / "items/train.parquet").write_bytes(b"PAR1 and then nothing")
    error = failure(folder)
    assert error.where == str(folder / "items/train.parquet")
    assert "convert it again" in error.remedy


def test_parquet_with_a_wrong_column(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = example.put(tmp_path, example.rows())
    table = pa.Table.from_pylist(example.rows()["users"])
    table = table.set_column(0, "user_id", table["user_id"].cast(pa.float64()))
    pq.write_table(table, folder / "users/train.parquet")
    error = failure(folder)
    assert error.where == f"{folder / 'users/train.parquet'}, column user_id"
    assert (error.found, error.expected) == ("double", "int64")


def refuse(monkeypatch, path, number: int) -> None:
    """Make the operating system refuse to open `path`, or any file of its name when it is new."""
    opened = open

    def guarded(file, mode="r", *args, **options):
        if os.fspath(file).endswith(f"{path.parent.name}/{path.name}"):
            raise OSError(number, os.strerror(number), os.fspath(file))
        return opened(file, mode, *args, **options)

    monkeypatch.setattr(tables, "open", guarded, raising=False)


@pytest.mark.parametrize(
    ("number", "found"),
    [(errno.EACCES, "Permission denied"), (errno.ENOSPC, "No space left on device")],
)
def test_writing_that_is_refused_leaves_nothing(tmp_path, monkeypatch, number, found):
    data = KuaiSearch.read(example.put(tmp_path / "in", example.rows()))
    refuse(monkeypatch, tmp_path / "rank/train.jsonl", number)  # the fourth of five files
    with pytest.raises(InputError) as error:
        data.write(tmp_path / "out")
    assert error.value.found == found
    assert "rank/train.jsonl" in error.value.where
    assert error.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_disk_that_is_really_full_leaves_nothing(tmp_path, monkeypatch):
    data = KuaiSearch.read(example.put(tmp_path / "in", example.rows()))
    opened = open

    def full(file, *args, **options):
        return opened("/dev/full" if "recall" in os.fspath(file) else file, *args, **options)

    monkeypatch.setattr(tables, "open", full, raising=False)
    with pytest.raises(InputError, match="No space left on device"):
        data.write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_writing_over_files_is_refused(tmp_path):
    data = KuaiSearch.read(example.put(tmp_path, example.rows()))
    with pytest.raises(InputError, match="an empty folder"):
        data.write(tmp_path)
    assert json.loads((tmp_path / "users/train.jsonl").read_text("utf-8").splitlines()[0])
