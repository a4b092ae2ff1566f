"""The audit: every trap and rule of KuaiSearch as a check that passes or names the rows.

Source: the rules that labels and splits rest on, and the traps known from the released files and
code of KuaiSearch (arXiv 2602.11518). A check that flags real data is a warning to act on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from minisearch.data.kuaisearch import JOINS, SPLITS, KuaiSearch
from minisearch.records import AGE_BUCKETS, Ragged, Table, row_count


@dataclass(frozen=True)
class Check:
    """One finding: `passed` is None where the data at hand cannot tell, and `detail` says why.

    `rows` are the first ten rows at fault, counted from 1 in the table that the name begins with.
    """

    name: str
    passed: bool | None
    detail: str
    rows: list[int] = field(default_factory=list)


def audit(data: KuaiSearch) -> list[Check]:
    """All checks: keys, joins, session against rank rows, values, splits, histories, released code.

    Checks that need a table which was not read have `passed` None and say so.
    """
    rules = (_keys, _joins, _outcomes, _values, _label, _time, _categories)
    with_rank = (_aggregate, _whole_sessions, _history_length, _history_future)
    checks = [check for rule in rules for check in rule(data)]
    for rule in with_rank:
        name = f"rank: {rule.__name__.strip('_').replace('_', ' ')}"
        missing = [Check(name, None, "the rank table was not read")]
        checks += missing if data.rank is None else rule(data, data.rank)
    return checks + _released_code()


def _check(name: str, faulty: np.ndarray, detail: str) -> Check:
    """Passed when no row is faulty. Shape: faulty (M,) row numbers from 0, in any order."""
    rows = np.unique(faulty)
    found = f"{detail}; {len(rows):,} rows at fault" if len(rows) else detail
    return Check(name, not len(rows), found, (rows[:10] + 1).tolist())


def _codes(*arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays with equal values replaced by equal small integers."""
    codes = np.unique(np.concatenate(arrays), return_inverse=True)[1]
    return np.split(codes, np.cumsum([len(a) for a in arrays])[:-1])


def _pairs(*ragged: Ragged) -> list[np.ndarray]:
    """(row, value) pairs of each list column as single integers, equal where the pairs are."""
    codes = _codes(*(r.values for r in ragged))
    span = 1 + max((int(c.max()) for c in codes if len(c)), default=0)
    return [r.rows * span + c for r, c in zip(ragged, codes, strict=True)]


def _absent(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which values are not among `known`; many times faster than np.isin on these wide ranges."""
    if not len(known):
        return np.ones(len(values), dtype=bool)
    known = np.sort(known)
    return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] != values


def _keys(data: KuaiSearch) -> Iterator[Check]:
    for name, key in (("users", "user_id"), ("items", "item_id"), ("recall", "session_id")):
        ids = data.tables()[name][key]
        order = np.argsort(ids, kind="stable")
        repeats = order[1:][np.diff(ids[order]) == 0]
        detail = f"{len(ids):,} rows"
        if name == "recall":  # the published size table calls sessions "queries"
            distinct = len({" ".join(q.lower().split()) for q in data.recall["query"]})
            detail = f"{len(ids):,} sessions with {distinct:,} distinct queries: count them apart"
        yield _check(f"{name}: one row for each {key}", repeats, detail)


def _joins(data: KuaiSearch) -> Iterator[Check]:
    recent = [
        ("rank", f"recently_{kind}_item_ids", "items", "item_id")
        for kind in ("clicked", "purchased")
    ]
    for name, column, target, key in (*JOINS, *recent):
        title = f"{name}: {column} joins {target}"
        table = data.tables().get(name)
        if table is None:
            yield Check(title, None, f"the {name} table was not read")
            continue
        ids = table[column]
        values, rows = (ids.values, ids.rows) if isinstance(ids, Ragged) else (ids, None)
        lost = np.flatnonzero(~np.isin(values, data.tables()[target][key]))
        detail = f"{len(values) - len(lost):,} of {len(values):,} ids found"
        if target == "users" and lost.size:
            detail += "; an id without a row has no place in an embedding table"
        yield _check(title, lost if rows is None else rows[lost], detail)


def _outcomes(data: KuaiSearch) -> Iterator[Check]:
    shown = data.recall["impressed_item_ids"]
    for kind in ("clicked", "purchased"):
        part = data.recall[f"{kind}_item_ids"]
        pairs, allowed = _pairs(part, shown)
        faulty = part.rows[_absent(pairs, allowed)]
        detail = f"{len(part.values):,} {kind} of {len(shown.values):,} impressed items"
        yield _check(f"recall: {kind} items were impressed", faulty, detail)


def _recall_rows(data: KuaiSearch, rank: Table) -> np.ndarray:
    """The recall row of each rank row, -1 where there is none. Shape: (rank rows,)."""
    ids = data.recall["session_id"]
    order = np.argsort(ids, kind="stable")
    at = np.minimum(np.searchsorted(ids[order], rank["session_id"]), len(ids) - 1)
    return np.where(ids[order][at] == rank["session_id"], order[at], -1)


def _aggregate(data: KuaiSearch, rank: Table) -> Iterator[Check]:
    recall, at = data.recall, _recall_rows(data, rank)
    known = at >= 0
    with_rank = np.zeros(row_count(recall), dtype=bool)
    with_rank[at[known]] = True
    marks = {"impressed": known, "clicked": rank["is_clicked"] == 1}
    marks["purchased"] = rank["is_purchased"] == 1
    for kind, mark in marks.items():
        listed, keep = recall[f"{kind}_item_ids"], mark & known
        items = Ragged.from_pairs(at[keep], rank["target_item_id"][keep], row_count(recall))
        one, other = _pairs(listed, items)
        faulty = np.concatenate([listed.rows[_absent(one, other)], items.rows[_absent(other, one)]])
        detail = f"{with_rank.sum():,} of {len(with_rank):,} sessions have rank rows to compare"
        yield _check(f"recall: {kind} items are those of rank", faulty[with_rank[faulty]], detail)
    for name in ("user_id", "query", "time_index", "split"):
        differs = known & (rank[name] != recall[name][at])
        detail = f"{known.sum():,} rows compared"
        yield _check(f"rank: {name} is its session's", np.flatnonzero(differs), detail)


def _values(data: KuaiSearch) -> Iterator[Check]:
    """Columns with few allowed values; the age is a bucket, the split is a column, not a file."""
    binary, tables = (0, 1), data.tables()
    for name, column, allowed in (
        ("users", "age_bucket", AGE_BUCKETS),
        ("rank", "is_clicked", binary),
        ("rank", "is_purchased", binary),
        ("relevance", "score", (0, 1, 2, 3)),
        *((name, "split", SPLITS) for name in ("recall", "rank", "relevance")),
    ):
        title = f"{name}: {column} is one of {', '.join(map(str, allowed))}"
        if column not in tables.get(name, {}):
            yield Check(title, None, f"{name}.{column} was not read")
            continue
        values = tables[name][column]
        shares = {value: float(np.mean(values == value)) for value in allowed}
        detail = ", ".join(f"{value}: {share:.2%}" for value, share in shares.items())
        check = _check(title, np.flatnonzero(~np.isin(values, np.array(allowed))), detail)
        empty = column == "split" and not all(shares.values())
        yield replace(check, passed=False) if empty else check


def _label(data: KuaiSearch) -> Iterator[Check]:
    title = "relevance: the label is score == 3, and both labels occur"
    if data.relevance is None:
        yield Check(title, None, "the relevance table was not read")
        return
    rate = float(np.mean(data.relevance["score"] == 3))
    yield Check(title, 0 < rate < 1, f"base rate {rate:.4f}, to print beside every PR-AUC")


def _time(data: KuaiSearch) -> Iterator[Check]:
    times, test = data.recall["time_index"], data.recall["split"] == "test"
    title = "recall: training ends before testing begins"
    if test.all() or not test.any():
        yield Check(title, None, "there is only one split")
        return
    end = times[~test].max()
    detail = f"train ends at {end}, test begins at {times[test].min()}"
    yield _check(title, np.flatnonzero(test & (times <= end)), detail)


def _whole_sessions(data: KuaiSearch, rank: Table) -> Iterator[Check]:
    """A validation set drawn by row would share sessions with training."""
    _, first, inverse, sizes = np.unique(
        rank["session_id"], return_index=True, return_inverse=True, return_counts=True
    )
    mixed = rank["split"] != rank["split"][first][inverse]
    cut = float(np.mean(1 - 0.9**sizes - 0.1**sizes))
    detail = f"a random 10 % of rows would cut {cut:.0%} of sessions: draw validation by session"
    yield _check("rank: no session lies in two splits", np.flatnonzero(mixed), detail)


def _history_length(data: KuaiSearch, rank: Table) -> Iterator[Check]:
    for kind in ("clicked", "purchased"):
        lengths = rank[f"recently_{kind}_item_ids"].lengths
        detail = f"longest {lengths.max(initial=0)}"
        name = f"rank: recently_{kind}_item_ids has at most 20"
        yield _check(name, np.flatnonzero(lengths > 20), detail)


def _history_future(data: KuaiSearch, rank: Table) -> Iterator[Check]:
    """Items in a logged history that the user met, by the log, only at the request or later."""
    recall = data.recall
    first = np.unique(rank["session_id"], return_index=True)[1]  # one history a request
    for kind in ("clicked", "purchased"):
        history = rank[f"recently_{kind}_item_ids"].select(first)
        log = recall[f"{kind}_item_ids"]
        users = _codes(rank["user_id"][first][history.rows], recall["user_id"][log.rows])
        items = _codes(history.values, log.values)
        span = 1 + max((int(c.max()) for c in items if len(c)), default=0)
        asked, logged = (u * span + i for u, i in zip(users, items, strict=True))
        times = recall["time_index"][log.rows]
        order = np.lexsort((times, logged))
        keys, start = np.unique(logged[order], return_index=True)
        at = np.minimum(np.searchsorted(keys, asked), max(len(keys) - 1, 0))
        seen = keys[at] == asked if len(keys) else np.zeros(len(asked), dtype=bool)
        earliest = times[order][start][at[seen]]
        late = earliest >= rank["time_index"][first][history.rows[seen]]
        name = f"rank: recently_{kind}_item_ids lies in the past"
        if not late.size:
            yield Check(name, None, "no item of these histories is in the user's log")
            continue
        detail = f"of {late.size:,} history items in the log {late.mean():.1%} come at the request"
        detail += " or later: rebuild histories from earlier sessions"
        yield _check(name, first[history.rows[seen][late]], detail)


def _categories(data: KuaiSearch) -> Iterator[Check]:
    for level in (1, 2, 3):
        ids, names = (data.items[f"category_level{level}_{part}"] for part in ("id", "name"))
        faulty = np.flatnonzero((ids == 0) != (names == "UNKNOWN"))
        detail = f"missing in {np.mean(ids == 0):.1%} of items"
        yield _check(f"items: category level {level} is 0 where UNKNOWN", faulty, detail)


def _released_code() -> list[Check]:
    """Two traps lie in the released ranking code; no row of any file can show them."""
    why = "concerns the released code, not the data: "
    paths = why + "text embeddings are written to ./ and read from ./data/"
    encoder = why + "the paper names BERT features, the code uses BAAI/bge-small-zh-v1.5"
    return [
        Check("code: embedding files are found", None, paths),
        Check("code: text features are the paper's", None, encoder),
    ]
