"""Questions and passages read from small files in the true formats, and every way to break them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minisearch.data.qa import body_of, read_corpus, read_questions, title_of, write_jsonl
from minisearch.errors import InputError

NQ = {"id": "test_0", "question": "who got the first nobel prize", "golden_answers": ["Röntgen"]}
HOTPOT = {
    "id": "dev_0",
    "question": "Were Scott Derrickson and Ed Wood of the same nationality?",
    "golden_answers": ["yes"],
    "metadata": {
        "type": "comparison",
        "level": "hard",
        "supporting_facts": {"title": ["Scott Derrickson", "Ed Wood"], "sent_id": [0, 0]},
        "context": {"title": ["Ed Wood"], "sentences": [["Ed Wood was an American."]]},
    },
}
STEPS = [
    {
        "id": 1,
        "question": "Green >> performer",
        "answer": "Steve Hillage",
        "paragraph_support_idx": 10,
        "support_paragraph": {"idx": 10, "title": "Green", "paragraph_text": "Green is ..."},
    },
    {"id": 2, "question": "#1 >> spouse", "answer": "Miquette Giraudy"},
]
MUSIQUE = {
    "id": "2hop__482757_12019",
    "question": "Who is the spouse of the Green performer?",
    "golden_answers": ["Miquette Giraudy"],
    "metadata": {"answerable": True, "question_decomposition": STEPS},
}


def search_r1(source: str, index: int, **columns) -> dict:
    prompt = f"Answer the given question. For example, Beijing. Question: who won game {index}?\n"
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": prompt}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": [f"team {index}", "them"]}},
        "extra_info": {"split": "train", "index": index},
        **columns,
    }


@pytest.fixture
def put(tmp_path):
    def write(*rows, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        if name.endswith(".parquet"):
            columns = {column for row in rows for column in row}  # parquet has all in every row
            filled = [{column: row.get(column) for column in columns} for row in rows]
            pq.write_table(pa.Table.from_pylist(filled), path)
        else:
            write_jsonl(path, rows)
        return path

    return write


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_flashrag_questions_are_read_from_every_kind_of_file(put, name):
    nq, hotpot = read_questions(put(NQ, HOTPOT, name=name))
    assert nq == {**NQ, "metadata": {}}
    assert hotpot == HOTPOT


def test_a_limit_reads_only_the_first_rows(put):
    path = put(NQ, HOTPOT)
    path.write_bytes(path.read_bytes() + b"broken")
    assert [q["id"] for q in read_questions(path, limit=2)] == ["test_0", "dev_0"]


@pytest.mark.parametrize("nested", [False, True])
def test_the_decomposition_of_musique_becomes_hops(put, nested):
    row = {**MUSIQUE, "metadata": {"metadata": MUSIQUE["metadata"]}} if nested else MUSIQUE
    (question,) = read_questions(put(row))
    assert question["metadata"].pop("hops") == [
        {"question": "Green >> performer", "answer": "Steve Hillage", "gold_ids": []},
        {"question": "Steve Hillage >> spouse", "answer": "Miquette Giraudy", "gold_ids": []},
    ]
    assert question == row


def test_supporting_facts_without_steps_make_no_hops(put):
    (question,) = read_questions(put(HOTPOT))
    assert "hops" not in question["metadata"]
    assert question["metadata"]["supporting_facts"] == HOTPOT["metadata"]["supporting_facts"]


def test_search_r1_rows_give_question_target_and_source(put):
    path = put(search_r1("nq", 0), search_r1("hotpotqa", 0), name="train.parquet")
    one, other = read_questions(path)
    assert one == {
        "id": "nq/train_0",
        "question": "who won game 0?",
        "golden_answers": ["team 0", "them"],
        "metadata": {"data_source": "nq"},
    }
    assert other["id"] == "hotpotqa/train_0"


def test_search_r1_rows_keep_the_columns_of_flashrag_beside_them(put):
    beside = {"id": "train_7", "question": "who won", "golden_answers": ["x"]}
    nq = search_r1("nq", 7, **beside, metadata=None)
    hotpot = search_r1("hotpotqa", 7, **{**beside, "metadata": HOTPOT["metadata"]})
    one, other = read_questions(put(nq, hotpot, name="train.parquet"))
    assert (one["id"], one["question"]) == ("nq/train_7", "who won")
    assert one["golden_answers"] == ["team 7", "them"]
    assert one["metadata"] == {"data_source": "nq"}
    assert other["metadata"] == {**HOTPOT["metadata"], "data_source": "hotpotqa"}


def test_what_parquet_fills_in_for_other_sources_is_left_out(put):
    rows = (search_r1("musique", 1, **MUSIQUE), search_r1("hotpotqa", 1, **HOTPOT))
    _, hotpot = read_questions(put(*rows, name="test.parquet"))
    assert hotpot["metadata"] == {**HOTPOT["metadata"], "data_source": "hotpotqa"}


def test_blank_aliases_are_dropped(put):
    (question,) = read_questions(put({**NQ, "golden_answers": ["", "Röntgen", " "]}))
    assert question["golden_answers"] == ["Röntgen"]


def without(row: dict, column: str) -> dict:
    return {name: value for name, value in row.items() if name != column}


@pytest.mark.parametrize(
    ("row", "column", "found", "expected"),
    [
        (without(NQ, "golden_answers"), "golden_answers", "only id, question", "a column"),
        (without(NQ, "id"), "id", "only question, golden_answers", "a column id"),
        ({**NQ, "id": 1.5}, "id", "1.5 (float)", "str | int"),
        ({**NQ, "id": True}, "id", "True (bool)", "str | int"),
        ({**NQ, "question": ["who"]}, "question", "['who'] (list)", "str"),
        ({**NQ, "question": " "}, "question", "empty text", "text"),
        ({**NQ, "golden_answers": "Röntgen"}, "golden_answers", "'Röntgen' (str)", "list"),
        ({**NQ, "golden_answers": []}, "golden_answers", "[]", "at least one answer"),
        ({**NQ, "golden_answers": [" "]}, "golden_answers", "[' ']", "at least one answer"),
        ({**NQ, "golden_answers": ["a", 3]}, "golden_answers", "['a', 3]", "all of them text"),
        ({**NQ, "metadata": "x"}, "metadata", "'x' (str)", "dict"),
        (search_r1("nq", 1, prompt=[]), "content", "an empty object", "a column content"),
        (
            search_r1("nq", 1, prompt=[{"role": "user", "content": "Hello"}]),
            "prompt",
            "'Hello'",
            "a question",
        ),
        (search_r1("nq", 1, reward_model={"style": "rule"}), "ground_truth", "only style", "a col"),
        (without(search_r1("nq", 1), "extra_info"), "extra_info", "only data_source", "a column"),
        (
            {**MUSIQUE, "metadata": {"question_decomposition": [{"question": "q"}]}},
            "answer",
            "only question",
            "a column answer",
        ),
    ],
)
def test_a_wrong_row_is_named_with_its_column(put, row, column, found, expected):
    path = put(HOTPOT, row)
    with pytest.raises(InputError) as error:
        read_questions(path)
    assert error.value.where.startswith(f"{path}, row 2")
    assert error.value.where.endswith(f"column {column}")
    assert found in error.value.found
    assert expected in error.value.expected
    assert error.value.remedy


def test_an_id_that_repeats_is_named_with_both_rows(put):
    with pytest.raises(InputError, match=r"row 3, column id: found 'test_0', which row 1 has"):
        read_questions(put(NQ, HOTPOT, NQ))


@pytest.mark.parametrize("read", [read_questions, lambda path: list(read_corpus(path))])
@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("rows.jsonl", None, "No such file"),
        ("rows.parquet", None, "No such file"),
        ("rows.jsonl", b"", "no rows"),
        ("rows.jsonl", b'{"id": "1", "conte', "cut off or no JSON"),
        ("rows.jsonl", b'"text"\n', "a str"),
        ("rows.jsonl", b'{"id": "\xff"}\n', "not UTF-8"),
        ("rows.jsonl.gz", b"no gzip at all", "Not a gzipped file"),
        ("rows.jsonl.gz", gzip.compress(b'{"id": "1"', mtime=0)[:-9], "ended before"),
        ("rows.parquet", b"no parquet at all", "magic bytes"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, read, name, content, found):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read(path)
    assert str(path) in error.value.where
    assert found in error.value.found


def passage(number: int) -> dict:
    return {"id": str(number), "contents": f'"Title {number}"\nText {number}.\nMore.'}


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz", "corpus.parquet"])
def test_a_corpus_is_read_with_titles_and_texts(put, name):
    documents = list(read_corpus(put(passage(0), {**passage(1), "url": "x"}, name=name)))
    assert documents == [passage(0), passage(1)]
    assert title_of(documents[1]) == "Title 1"
    assert body_of(documents[1]) == "Text 1.\nMore."


def test_a_corpus_is_read_only_as_far_as_it_is_asked_for(put):
    path = put(passage(0), passage(1))
    path.write_bytes(path.read_bytes() + b"broken\n")
    stream = read_corpus(path)
    assert [next(stream)["id"], next(stream)["id"]] == ["0", "1"]
    with pytest.raises(InputError, match="row 3"):
        next(stream)


@pytest.mark.parametrize("contents", ["no title line", "\ntext", '""\ntext', "  \ntext"])
def test_contents_without_a_title_are_named(put, contents):
    with pytest.raises(InputError, match=r"row 2, column contents: .* line with the title"):
        list(read_corpus(put(passage(0), {"id": "1", "contents": contents})))


@pytest.mark.parametrize("wrong", [{"id": "1"}, {"id": "1", "contents": 3}, {"contents": '"T"\nx'}])
def test_a_passage_without_its_columns_is_named(put, wrong):
    with pytest.raises(InputError, match=r"row 1, column (id|contents)"):
        list(read_corpus(put(wrong)))


def test_rows_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    write_jsonl(path, [NQ])
    assert json.loads(path.read_text(encoding="utf-8")) == NQ
    assert "Röntgen" in path.read_text(encoding="utf-8")

    def rows():
        yield HOTPOT
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, rows())
    assert [q["id"] for q in read_questions(path)] == ["test_0"]
    assert [p.name for p in path.parent.iterdir()] == ["rows.jsonl"]
