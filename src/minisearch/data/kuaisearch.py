"""KuaiSearch in memory: five tables read from the published files, checked, joined and written.

Source: KuaiSearch (arXiv 2602.11518), the published files and their `split` column.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minisearch.data.tables import read_table, write_jsonl
from minisearch.errors import InputError, one_of
from minisearch.records import SCHEMAS, Ragged, Table, row_count, select_rows
from minisearch.storage import atomic_directory

# Where each edition keeps a table. Relevance is shared by the full and the Lite edition.
LAYOUTS = {"full": "{}/train", "lite": "{}_lite/train", "demo": "{}"}
SPLITS = ("train", "test")

# (table, column, table it points into, key there): every id must have its row.
JOINS = (
    ("recall", "user_id", "users", "user_id"),
    ("recall", "impressed_item_ids", "items", "item_id"),
    ("recall", "clicked_item_ids", "items", "item_id"),
    ("recall", "purchased_item_ids", "items", "item_id"),
    ("rank", "user_id", "users", "user_id"),
    ("rank", "target_item_id", "items", "item_id"),
    ("rank", "session_id", "recall", "session_id"),
)


@dataclass(frozen=True, eq=False)
class KuaiSearch:
    """The five tables, columns under their published names (see `records.SCHEMAS`).

    The real files and the simulated shop both come in this form. `rank` and `relevance` are None
    where they were not read or made.
    """

    users: Table
    items: Table
    recall: Table
    rank: Table | None = None
    relevance: Table | None = None

    @classmethod
    def read(
        cls,
        folder: str | Path,
        schema_only: bool = False,
        limit: int | None = None,
        tables: Collection[str] = tuple(SCHEMAS),
    ) -> KuaiSearch:
        """Read the JSON Lines files of one edition, or the parquet files made from them.

        Args:
            folder: holds `items/train.jsonl` and so on (full), `items_lite/train.jsonl` (Lite) or
                `items.jsonl` (the demo files).
            schema_only: check columns and types alone. For the demo files, which do not join and
                lack `relevance.split`; the column is then missing here too.
            limit: keep this many sessions of each split, see `sample`; with `schema_only`, read
                this many rows of each file.
            tables: what to read; `rank` (77 GB in the full edition) and `relevance` may be left
                out.

        Raises:
            InputError: naming file, row and column, for a missing file, a wrong column or type, an
                id that does not join, an empty split, a broken line or a wrong encoding.
        """
        for name in tables:
            if name not in SCHEMAS:
                raise one_of("option tables", name, list(SCHEMAS))
        wanted = {"users", "items", "recall", *tables}
        paths = _locate(Path(folder), [name for name in SCHEMAS if name in wanted])
        optional = ("split",) if schema_only else ()
        rows = limit if schema_only else None
        try:
            data = cls(**{t: read_table(p, SCHEMAS[t], optional, rows) for t, p in paths.items()})
        except InputError as error:
            if not error.where.endswith("column split"):
                raise
            remedy = f"{error.remedy.rstrip('.')}, or read the demo files with schema_only."
            raise InputError(error.where, error.found, error.expected, remedy) from error
        if schema_only:
            return data
        _check_splits(data, paths)
        _check_keys(data, paths)
        _check_joins(data, paths)
        return data if limit is None else data.sample(limit)

    def write(self, folder: str | Path) -> None:
        """Write the files in the layout of the full edition, all of them or none.

        Raises:
            InputError: where the folder holds files already or cannot be written.
        """
        final = Path(folder)
        if final.is_dir() and any(final.iterdir()):
            remedy = "name a new folder, or empty this one."
            raise InputError(str(final), "a folder with files in it", "an empty folder", remedy)
        with atomic_directory(final) as part:
            for name, table in self.tables().items():
                (part / name).mkdir()
                write_jsonl(part / name / "train.jsonl", table, SCHEMAS[name])

    def tables(self) -> dict[str, Table]:
        """The tables that are there, by name, in the published order."""
        return {name: getattr(self, name) for name in SCHEMAS if getattr(self, name) is not None}

    def sample(self, sessions: int) -> KuaiSearch:
        """The last train and the first test sessions by time, with the rows that join to them.

        The window is contiguous, so that users keep recent histories. The catalogue shrinks to what
        these sessions show, which makes recall easier: never compare it with the whole data.
        """
        order = np.argsort(self.recall["time_index"], kind="stable")
        train = order[self.recall["split"][order] == "train"][-sessions:]
        test = order[self.recall["split"][order] == "test"][:sessions]
        recall = select_rows(self.recall, np.sort(np.concatenate([train, test])))
        shown, rank = [recall["impressed_item_ids"].values], self.rank
        if rank is not None:
            rank = select_rows(rank, np.isin(rank["session_id"], recall["session_id"]))
            shown += [rank[f"recently_{kind}_item_ids"].values for kind in ("clicked", "purchased")]
        items = select_rows(self.items, np.isin(self.items["item_id"], np.concatenate(shown)))
        users = select_rows(self.users, np.isin(self.users["user_id"], recall["user_id"]))
        return KuaiSearch(users, items, recall, rank, self.relevance)


def positives(recall: Table) -> Ragged:
    """What each session clicked or purchased, every item once; sessions may have none.

    These are the relevant items of the recall stage (KuaiSearch, recall task); sessions whose
    `lengths` is 0 are left out of its figures.

    Shape: a recall table of N rows -> Ragged of N rows of item ids.
    """
    clicked, purchased = recall["clicked_item_ids"], recall["purchased_item_ids"]
    rows = np.concatenate([clicked.rows, purchased.rows])
    items = np.concatenate([clicked.values, purchased.values])
    order = np.lexsort((items, rows))  # stable: of two equal ones the click comes first
    again = np.zeros(len(order), dtype=bool)
    again[1:] = (np.diff(rows[order]) == 0) & (np.diff(items[order]) == 0)
    first = np.sort(order[~again])
    return Ragged.from_pairs(rows[first], items[first], len(clicked))


def past_interactions(data: KuaiSearch, last: int = 20) -> Ragged:
    """What the session's user clicked or purchased strictly before it, oldest first.

    Rebuilt from the sessions, because the logged `recently_*` lists carry no times and hold items
    of the future.

    Args:
        data: only its recall table is read.
        last: keep at most this many, the latest.

    Shape: Ragged with one row of item ids for each of the N recall rows.
    """
    users, times = data.recall["user_id"], data.recall["time_index"]
    order = np.lexsort((times, users))
    done = positives(data.recall).select(order)
    new_user = np.diff(users[order], prepend=-1) != 0
    new_user[:1] = True
    new_time = new_user | (np.diff(times[order], prepend=-1) != 0)
    numbers = np.arange(len(order))
    user_starts = np.maximum.accumulate(np.where(new_user, numbers, 0))
    time_starts = np.maximum.accumulate(np.where(new_time, numbers, 0))
    ends = done.offsets[time_starts]
    starts = np.maximum(done.offsets[user_starts], ends - last)
    return done.slices(starts, ends).select(np.argsort(order))


def _locate(folder: Path, tables: list[str]) -> dict[str, Path]:
    """The file of each table, of the one edition that the folder holds."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise InputError(str(folder), found, "a folder of KuaiSearch files", "check the path.")

    def existing(stem: str) -> list[Path]:
        both = (folder / f"{stem}.parquet", folder / f"{stem}.jsonl")
        return [path for path in both if path.exists()]

    own = [name for name in tables if name != "relevance"]
    editions = [e for e, at in LAYOUTS.items() if any(existing(at.format(t)) for t in own)]
    if len(editions) > 1:
        found, remedy = " and ".join(editions) + " files", "give each edition its own folder."
        raise InputError(str(folder), found, "the files of one edition", remedy)
    layout = LAYOUTS[editions[0] if editions else "full"]
    paths = {}
    for name in tables:
        stem = layout.format(name)
        choices = existing(stem)
        if name == "relevance" and not choices:
            choices = existing(LAYOUTS["full"].format(name))
        if not choices:
            optional = f", or leave {name} out of `tables`" if name in ("rank", "relevance") else ""
            remedy = f"fetch it with data_scripts/kuaisearch.py{optional}."
            where = f"{folder / stem}.jsonl"
            raise InputError(where, "no such file", f"the {name} table", remedy)
        paths[name] = choices[0]
    return paths


def _check_splits(data: KuaiSearch, paths: dict[str, Path]) -> None:
    for name in [t for t in ("recall", "rank", "relevance") if t in paths]:
        split = data.tables()[name]["split"]
        for row in np.flatnonzero(~np.isin(split, SPLITS))[:1]:
            where = f"{paths[name]}, row {row + 1}, column split"
            remedy = "name the split of every row."
            raise InputError(where, repr(split[row]), " or ".join(SPLITS), remedy)
        for part in [s for s in SPLITS if not np.any(split == s)]:
            where = f"{paths[name]}, rows 1 to {len(split)}, column split"
            remedy = "use the whole file, or read it with schema_only."
            raise InputError(where, f"no row of {part!r}", "rows of both splits", remedy)


def _check_keys(data: KuaiSearch, paths: dict[str, Path]) -> None:
    for name, key in (("users", "user_id"), ("items", "item_id"), ("recall", "session_id")):
        ids = data.tables()[name][key]
        order = np.argsort(ids, kind="stable")
        for repeat in np.sort(order[1:][np.diff(ids[order]) == 0])[:1]:
            first = int(np.flatnonzero(ids == ids[repeat])[0]) + 1
            where = f"{paths[name]}, row {repeat + 1}, column {key}"
            found, remedy = f"{ids[repeat]}, as in row {first}", "keep one row of each id."
            raise InputError(where, found, "an id of its own in each row", remedy)


def _check_joins(data: KuaiSearch, paths: dict[str, Path]) -> None:
    tables = data.tables()
    for name, column, target, key in [join for join in JOINS if join[0] in tables]:
        ids = tables[name][column]
        values = ids.values if isinstance(ids, Ragged) else ids
        for lost in np.flatnonzero(~np.isin(values, tables[target][key]))[:1]:
            row = ids.rows[lost] if isinstance(ids, Ragged) else lost
            where = f"{paths[name]}, row {row + 1}, column {column}"
            expected = f"one of the {row_count(tables[target]):,} {key} of {paths[target]}"
            remedy = "use files of one edition and revision, or read with schema_only."
            raise InputError(where, str(values[lost]), expected, remedy)
