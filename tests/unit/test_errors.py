"""Every error has one shape: where, what was found, what was expected, what to do."""

from __future__ import annotations

import pickle

import pytest

from minisearch.errors import InputError, MinisearchError, one_of


def test_the_message_has_all_four_parts_in_order():
    error = InputError("items.jsonl, row 17, column item_id", "'x'", "an integer", "mend the row.")
    assert str(error) == (
        "items.jsonl, row 17, column item_id: found 'x'; expected an integer. Remedy: mend the row."
    )
    assert (error.where, error.found) == ("items.jsonl, row 17, column item_id", "'x'")
    assert (error.expected, error.remedy) == ("an integer", "mend the row.")
    assert isinstance(error, MinisearchError)


def test_an_error_crosses_process_borders_whole():
    error = pickle.loads(pickle.dumps(InputError("here", "a", "b", "do c.")))
    assert isinstance(error, InputError)
    assert str(error) == "here: found a; expected b. Remedy: do c."


@pytest.mark.parametrize(
    ("found", "remedy"),
    [("tooy", "did you mean 'toy'?"), ("zzz", "choose one of smoke, toy, small.")],
)
def test_a_wrong_name_gets_the_nearest_or_all(found, remedy):
    error = one_of("profile", found, ["smoke", "toy", "small"])
    assert error.remedy == remedy
    assert str(error).startswith(f"profile: found '{found}'; expected one of smoke, toy, small.")
