"""Composed image retrieval: a reference picture, a change in words, the picture that is wanted.

The published files are read as they are:

    FashionIQ   captions/cap.dress.val.json       image_splits/split.dress.val.json
    CIRR        captions/cap.rc2.val.json         image_splits/split.rc2.val.json
    own         gallery.txt                       triplets.jsonl

with the pictures in `images/`, and captions, where there are any, in files of `caption_files/`.

Source: FashionIQ (arXiv 1905.12794) and CIRR (arXiv 2108.04024), the published files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from minisearch.data.images import load_picture
from minisearch.data.tables import _unreadable
from minisearch.errors import InputError, one_of
from minisearch.storage import atomic_write

FASHION = ("dress", "shirt", "toptee")
GALLERIES = ("original", "pairs")
ENDINGS = ("", ".png", ".jpg", ".jpeg", ".webp")
SUBMITTED = {"recall": 50, "recall_subset": 3}  # names a query in a file for CIRR's server


@dataclass(frozen=True)
class Triplet:
    """One composed query.

    Attributes:
        triplet_id: its name, unique in a set.
        reference: the picture that the query starts from.
        text: what is to be different; not empty.
        target: the wanted picture, "" where it is not published.
        kind: of the change, "" where nobody says.
        subset: pictures that are hard to tell from the target, with both in it; empty for none.
        texts: the change in the annotators' own pieces, where there are several.
    """

    triplet_id: str
    reference: str
    text: str
    target: str
    kind: str = ""
    subset: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompositionSet:
    """Queries, the gallery they search, and what is known of its pictures.

    Attributes:
        gallery: names of the pictures that may be found.
        triplets: the queries.
        open: a picture by its name.
        captions: what somebody wrote about pictures of the gallery, seeing nothing else.
        keeps_reference: whether the protocol leaves a query's reference among the candidates.

    Raises:
        InputError: for a picture or a query that is listed twice, a reference, target or subset
            that the gallery lacks, a change without a word, a caption of an unknown picture.
    """

    gallery: list[str]
    triplets: list[Triplet]
    open: Callable[[str], Image.Image]
    captions: Mapping[str, str] = field(default_factory=dict)
    keeps_reference: bool = False

    def __post_init__(self) -> None:
        _once("gallery", self.gallery)
        _once("triplet_id", (triplet.triplet_id for triplet in self.triplets))
        known = set(self.gallery)
        for triplet in self.triplets:
            _check_triplet(triplet, known)
        _check_captions(self.captions, known)

    def with_captions(self, captions: Mapping[str, str]) -> CompositionSet:
        """The same set with other captions; every picture of the gallery needs one.

        Raises:
            InputError: for a picture without a caption, or a caption of an unknown picture.
        """
        missing = [name for name in self.gallery if not captions.get(name, "").strip()]
        if missing:
            found = f"none for {missing[0]!r} and {len(missing) - 1} others"
            remedy = "caption the whole gallery, as searching needs all of it."
            raise InputError("captions", found, "one for every picture of the gallery", remedy)
        return replace(self, captions=dict(captions))


def _once(name: str, values: Iterable[str]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        found = f"{twice[0]!r} and {len(twice) - 1} others more than once"
        raise InputError(name, found, "each once", "number the copies, or drop them.")


def _check_triplet(triplet: Triplet, known: set[str]) -> None:
    where = f"query {triplet.triplet_id!r}"
    if not triplet.text.strip():
        remedy = "say what is to be different, or drop the query."
        raise InputError(f"{where}, text", repr(triplet.text), "a change in words", remedy)
    for role, name in (("reference", triplet.reference), ("target", triplet.target)):
        if name not in known and not (role == "target" and not name):
            remedy = "add the picture to the gallery, or drop the query."
            raise InputError(f"{where}, {role}", repr(name), "a picture of the gallery", remedy)
    strange = [name for name in triplet.subset if name not in known]
    lost = {triplet.reference, triplet.target} - {"", *triplet.subset}
    if strange or (triplet.subset and lost):
        found = f"{strange[0]!r}" if strange else f"no {sorted(lost)[0]!r}"
        expected = "pictures of the gallery, with reference and target"
        raise InputError(f"{where}, subset", found, expected, "drop the subset.")


def _check_captions(captions: Mapping[str, str], known: set[str]) -> None:
    unknown = sorted(captions.keys() - known)
    if unknown:
        found = f"one for {unknown[0]!r} and {len(unknown) - 1} others"
        remedy = "read the captions of the same split."
        raise InputError("captions", found, "captions of pictures of the gallery", remedy)


# -- FashionIQ -------------------------------------------------------------------------------------


def joined(captions: Sequence[str]) -> str:
    """Annotators' sentences as one, the way FashionIQ is evaluated: "Cap1 and cap2".

    >>> joined(["is longer. ", "has red sleeves"])
    'Is longer and has red sleeves'
    """
    pieces = [caption.strip(".?, ") for caption in captions]
    text = " and ".join(piece for piece in pieces if piece)
    return text[:1].upper() + text[1:]


def training_texts(captions: Sequence[str]) -> list[str]:
    """The readings that training draws from: both orders together, and each sentence alone."""
    first, last = captions[0], captions[-1]
    found = [joined([first, last]), joined([last, first]), joined([first]), joined([last])]
    return [text for text in dict.fromkeys(found) if text]


def read_fashioniq(
    folder: str | Path, category: str, split: str = "val", gallery: str = "original"
) -> CompositionSet:
    """One category of FashionIQ, with its two protocols.

    Args:
        gallery: "original" for the whole list of the split, with the reference left in; "pairs" for
            the pictures that occur in a query, reference removed. Numbers of the two cannot be
            compared with one another.

    Raises:
        InputError: naming the file, row (from 1) and field at fault.
    """
    for option, value, known in (
        ("category", category, FASHION), ("gallery", gallery, GALLERIES),
    ):  # fmt: skip
        if value not in known:
            raise one_of(f"option {option}", value, list(known))
    root = Path(folder)
    path = root / "captions" / f"cap.{category}.{split}.json"
    triplets = []
    for number, row in enumerate(_list(path), 1):
        where = f"{path}, row {number}"
        texts = _field(row, "captions", list, where)
        if not texts or not all(isinstance(text, str) for text in texts):
            expected, remedy = "a list of sentences", "fetch the file again."
            raise InputError(f"{where}, field captions", repr(texts), expected, remedy)
        target = row.get("target", "")
        reference = _field(row, "candidate", str, where)
        name = f"{category}/{split}/{number}"
        texts = tuple(training_texts(texts)) if joined(texts) else ()
        triplets.append(Triplet(name, reference, texts[0] if texts else "", target, texts=texts))
    listed = _names(root / "image_splits" / f"split.{category}.{split}.json")
    if gallery == "pairs":
        used = {name for t in triplets for name in (t.reference, t.target)}
        listed = [name for name in listed if name in used]
    return _opened(root, split, listed, triplets, gallery == "original", f"{category}_")


# -- CIRR ------------------------------------------------------------------------------------------


def read_cirr(folder: str | Path, split: str = "val") -> CompositionSet:
    """CIRR: references are removed from the ranking; every query comes with a subset of six.

    Raises:
        InputError: naming the file, row (from 1) and field at fault.
    """
    root = Path(folder)
    path = root / "captions" / f"cap.rc2.{split}.json"
    triplets = []
    for number, row in enumerate(_list(path), 1):
        where = f"{path}, row {number}"
        members = _field(_field(row, "img_set", dict, where), "members", list, f"{where}, img_set")
        triplets.append(
            Triplet(
                str(_field(row, "pairid", int, where)),
                _field(row, "reference", str, where),
                _field(row, "caption", str, where),
                row.get("target_hard", ""),
                subset=tuple(members),
            )
        )
    places = _json(root / "image_splits" / f"split.rc2.{split}.json", dict)
    found = _opened(root, split, list(places), triplets, False, "")
    return replace(found, open=partial(_open, root / "images", places))


def cirr_submission(ranked: Mapping[str, Sequence[str]], metric: str) -> dict[str, Any]:
    """What CIRR's server takes: the best names of each query, and which metric they are for.

    Args:
        ranked: by `triplet_id`, best first, without the reference.
        metric: "recall" or "recall_subset".

    Raises:
        InputError: for an unknown metric, a list that is too short, or a name that is there twice.
    """
    if metric not in SUBMITTED:
        raise one_of("option metric", metric, list(SUBMITTED))
    count = SUBMITTED[metric]
    for name, found in ranked.items():
        if len(found) < count or len(set(found[:count])) < count:
            expected, remedy = f"{count} different pictures", "rank the whole gallery."
            raise InputError(f"query {name!r}", f"{len(set(found[:count]))}", expected, remedy)
    rows = {name: list(found[:count]) for name, found in ranked.items()}
    return {"version": "rc2", "metric": metric, **rows}


# -- a folder of our own ---------------------------------------------------------------------------


def read_compositions(folder: str | Path, split: str = "test") -> CompositionSet:
    """A folder in the book's own form, as `write_compositions` writes it.

    Raises:
        InputError: naming the file, row (from 1) and field at fault.
    """
    root, path = Path(folder), Path(folder) / "triplets.jsonl"
    listed, triplets = _text(root / "gallery.txt").splitlines(), []
    for number, line in enumerate(_text(path).splitlines(), 1):
        where = f"{path}, row {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(where, str(error), "a JSON object", "write it anew.") from error
        if _field(row, "split", str, where) == split:
            names = ("triplet_id", "reference", "text", "target", "kind")
            parts = {name: _field(row, name, str, where) for name in names}
            triplets.append(Triplet(**parts, subset=tuple(_field(row, "subset", list, where))))
    return _opened(root, split, listed, triplets, False, "")


def write_compositions(
    folder: str | Path, found: Mapping[str, CompositionSet], captions: Mapping[str, str]
) -> None:
    """Write sets by split, which share one gallery, and captions of its pictures."""
    root = Path(folder)
    first = next(iter(found.values()))
    rows = [
        {"split": split, **{name: getattr(t, name) for name in ("triplet_id", "reference", "text",
         "target", "kind", "subset")}}
        for split, part in found.items() for t in part.triplets
    ]  # fmt: skip
    atomic_write(root / "gallery.txt", "".join(f"{name}\n" for name in first.gallery))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    atomic_write(root / "triplets.jsonl", lines)
    if captions:
        for split in found:
            path = root / "caption_files" / f"captions.{split}.json"
            atomic_write(path, json.dumps(dict(captions), ensure_ascii=False))


# -- parts -----------------------------------------------------------------------------------------


def read_captions(path: str | Path) -> dict[str, str]:
    """Captions by picture: a JSON object whose values are texts, or objects with `Final_Caption`.

    Raises:
        InputError: for a file that is missing or no such object, or an entry without a caption.
    """
    found = {}
    for name, value in _json(Path(path), dict).items():
        text = value.get("Final_Caption") if isinstance(value, dict) else value
        if not isinstance(text, str) or not text.strip():
            expected, remedy = "a text, or an object with Final_Caption", "caption it again."
            raise InputError(f"{path}, entry {name!r}", repr(value)[:60], expected, remedy)
        found[name] = " ".join(text.split())
    return found


def _opened(
    root: Path, split: str, listed: list[str], triplets: list[Triplet], keeps: bool, prefix: str
) -> CompositionSet:
    captions: dict[str, str] = {}
    for path in sorted((root / "caption_files").glob(f"{prefix}*{split}.json")):
        captions |= read_captions(path)
    known = set(listed)
    captions = {name: text for name, text in captions.items() if name in known}
    return CompositionSet(listed, triplets, partial(_open, root / "images", {}), captions, keeps)


def _open(images: Path, places: Mapping[str, str], name: str) -> Image.Image:
    stem = images / places.get(name, name)
    if not stem.resolve().is_relative_to(images.resolve()):
        raise InputError(str(stem), "a place outside the folder", "one within", "correct its name.")
    for ending in ENDINGS:
        path = Path(f"{stem}{ending}")
        if path.is_file():
            return load_picture(path)
    raise InputError(str(stem), "no such picture", "a file of the data set", "bring the picture.")


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(str(path), str(error), "UTF-8 text", "write it anew.") from error


def _json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise InputError(str(path), str(error), "a JSON file", "fetch it again.") from error
    if not isinstance(content, kind):
        found, expected = type(content).__name__, f"a JSON {kind.__name__}"
        raise InputError(str(path), found, expected, "fetch it again.")
    return content


def _list(path: Path) -> list[Any]:
    rows: list[Any] = _json(path, list)
    if not rows:
        raise InputError(str(path), "no row", "one or more", "fetch the file again.")
    return rows


def _names(path: Path) -> list[str]:
    return [str(name) for name in _list(path)]


def _field(row: Any, name: str, kind: type, where: str) -> Any:
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        found = repr(value) if isinstance(row, dict) and name in row else "no such field"
        raise InputError(f"{where}, field {name}", found, kind.__name__, "fetch the file again.")
    return value
