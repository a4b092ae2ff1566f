"""Words, vocabularies and ids, Latin and Chinese."""

import subprocess
import sys

import numpy as np
import pytest

from minisearch.errors import InputError
from minisearch.text import END, Vocabulary, normalise, words

TEXTS = ["red shoes", "red dress", "blue shoes", "广场舞 服装", "广场舞 shoes", "zebra"]


def test_normalise_unifies_width_case_and_spaces():
    assert normalise("  Ｒｅｄ\u3000ＳＨＯＥＳ ①\n") == "red shoes 1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Red-Shoes, size 42!", ["red", "shoes", "size", "42"]),
        ("iPhone15 手机壳", ["iphone15", "手", "手机", "机", "机壳", "壳"]),
        ("裙", ["裙"]),
        ("A字裙new", ["a", "字", "字裙", "裙", "new"]),
        ("café crème_brûlée", ["café", "crème", "brûlée"]),
        ("𠮷野", ["𠮷", "𠮷野", "野"]),
        ("…!!", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_frequent_words_come_first_with_one_id_each():
    vocabulary = Vocabulary.build(TEXTS, min_count=2, pieces=16)
    assert vocabulary.frequent[0] == "shoes"  # three times
    assert {"red", "广", "广场", "场舞"} <= set(vocabulary.frequent)
    assert "zebra" not in vocabulary.frequent
    assert vocabulary.ids_of("shoes") == (END + 1,)
    assert len(vocabulary) == END + 1 + len(vocabulary.frequent) + 16


def test_rare_and_unknown_words_become_pieces():
    vocabulary = Vocabulary.build(TEXTS, min_count=2, pieces=10_000)
    zebra, zebras = vocabulary.ids_of("zebra"), vocabulary.ids_of("zebras")
    assert len(zebra) == 5  # ^ze zeb ebr bra ra$
    assert min(zebra + zebras) >= vocabulary.first_piece
    assert max(zebra + zebras) < len(vocabulary)
    assert zebra[:4] == zebras[:4]  # kin words share pieces
    assert zebra[4] not in zebras


def test_encode_pads_cuts_and_ends():
    vocabulary = Vocabulary.build(TEXTS, min_count=1, pieces=4)
    red, shoes, blue = (vocabulary.ids_of(word)[0] for word in ("red", "shoes", "blue"))
    ids = vocabulary.encode(["red shoes", "", "red shoes blue blue"], max_len=3)
    assert ids.tolist() == [[red, shoes, 0], [0, 0, 0], [red, shoes, blue]]
    assert ids.dtype == np.int64
    closed = vocabulary.encode(["red shoes", "", "red shoes blue blue"], max_len=3, end=True)
    assert closed.tolist() == [[red, shoes, END], [END, 0, 0], [red, shoes, END]]
    assert vocabulary.encode([], max_len=3).shape == (0, 3)


def test_decode_gives_the_frequent_words_back():
    vocabulary = Vocabulary.build(TEXTS, min_count=2, pieces=16)
    ids = vocabulary.encode(["red zebra shoes", ""], max_len=9, end=True)
    assert vocabulary.decode(ids) == [["red", "shoes"], []]


def test_ids_do_not_depend_on_the_process():
    code = "from minisearch.text import Vocabulary; print(Vocabulary(['a'], 512).ids_of('zebra'))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {f"{Vocabulary(['a'], 512).ids_of('zebra')}\n"}


def test_save_and_load(tmp_path):
    vocabulary = Vocabulary.build(TEXTS)
    vocabulary.save(tmp_path / "vocabulary.json")
    again = Vocabulary.load(tmp_path / "vocabulary.json")
    texts = [*TEXTS, "quite new 新词"]
    np.testing.assert_array_equal(again.encode(texts, 12), vocabulary.encode(texts, 12))


@pytest.mark.parametrize("content", [None, "", "[]", '{"pieces": 3}'])
def test_load_of_something_else(tmp_path, content):
    path = tmp_path / "vocabulary.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"vocabulary\.json.*written by save"):
        Vocabulary.load(path)


def test_no_words():
    with pytest.raises(InputError, match="texts: found no word"):
        Vocabulary.build(["", "!!"])
