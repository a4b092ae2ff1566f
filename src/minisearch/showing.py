"""Reproduction cards shown: as JSON, as the tables of a chapter, as the scoreboard."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from minisearch.cells import code_key, read_json
from minisearch.claims import Card, cards_folder
from minisearch.logs import read_dates
from minisearch.storage import project_root
from minisearch.verdicts import CERTAIN

GRADES = {  # how far what stands of a paper may be trusted
    "A": "stated by the authors",
    "B": "as several readers report",
    "C": "as one reader reports",
}


def to_json(card: Card) -> dict[str, Any]:
    """A card as plain values: `claims`, each with its verdict, evidence, cost and flags.

    What is said of the whole card (what was tried, left unstated, changed) is with the primary one.
    """
    results = _results(card)
    unmeasured, measured = {"value": None, "met": None}, results["preconditions"]
    needs = [
        {"id": name, **asdict(need), **measured.get(name, unmeasured)}
        for name, need in card.preconditions.items()
    ]
    claims, stale = [], _stale(card, results)
    begun, checked = read_dates(cards_folder() / "logs", card.chapter)
    for name, claim in card.claims.items():
        asked = [need for need in needs if need["id"] in card.needs(name)]
        own = {"preconditions": asked, "flags": _flags(card, name, begun) + stale}
        if claim.primary:
            whole = ("regimes", "unstated", "profiles", "changes")
            own |= {key: asdict(card)[key] for key in whole} | {"last_verified": checked}
        claims.append(_claim_json(card, name, results) | own)
    paper = asdict(card.paper)
    return {"chapter": card.chapter, "paper": paper, "question": card.question, "claims": claims}


def _claim_json(card: Card, name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    claim, found = card.claims[name], results["claims"].get(name, {"verdict": "NOT-RUN"})
    refuters = []
    for arm, rival in results["rivals"].items():
        if card.rivalled(arm) is not claim:
            continue
        row = {"arm": arm, "role": card.arms[arm].role, "effect": rival.get("estimate")}
        refuters.append(row | {"wins": rival["wins"], "verdict": rival["verdict"]})
    own = asdict(claim) | {"whose": claim.owner}
    arms = {role: own.pop(role) for role in ("treatment", "baseline", "among")}
    basis = ("method", "seeds", "worlds", "inits", "queries", "p", "p_holm", "beside")
    more = ("smallest_detectable_effect", "decisive", "pairs")
    return {
        "id": name,
        **own,
        "arms": arms,
        "effect": found.get("estimate"),
        "interval": [found["low"], found["high"]] if "low" in found else None,
        **{key: found.get(key) for key in (*basis, *more)},
        "refuters": refuters,
        "verdict": found["verdict"],
        "cost": results["cost"],
    }


def _results(card: Card) -> dict[str, Any]:
    """The published results, or none where the card was changed since they were computed."""
    path = cards_folder() / f"{card.chapter}.results.json"
    nothing: dict[str, Any] = {"claims": {}, "preconditions": {}, "rivals": {}}
    nothing |= {"cost": None, "code_keys": []}
    found = read_json(path) if path.is_file() else nothing
    return found if found.get("digest") == card.digest() else nothing


def _stale(card: Card, results: Mapping[str, Any]) -> list[str]:
    if not results["code_keys"]:
        return []
    now = code_key(project_root() / "chapters" / f"{card.chapter}.py")
    known = set(results["code_keys"]) == {now} or now in results["rechecked"]
    return [] if known else ["STALE"]


def _flags(card: Card, name: str, begun: Mapping[str, str]) -> list[str]:
    """Whether a claim was registered, and before its arms ran; by the day where no time is known.

    Args:
        begun: when the first run of each arm began.
    """
    when = card.registered_on(name)
    if when is None:
        return ["UNREGISTERED"]
    first = min((begun[arm] for arm in card.claims[name].arms if arm in begun), default=None)
    return ["RUN-BEFORE-REGISTRATION"] if first and first[: len(when)] < when else []


# --- in words -------------------------------------------------------------------------------------


def chapter_name(chapter: str, title: str = "") -> str:
    """Number and name of a chapter as the book's plan has it, or else with the title given."""
    import yaml

    path = project_root() / "book" / "plan.yaml"
    plan = yaml.safe_load(path.read_text("utf-8")) if path.is_file() else []
    names = {row["file"]: row["title"] for part in plan for row in part["chapters"]}
    return f"{int(chapter[:2])} {names.get(chapter, title)}"


def _headline(claim: Mapping[str, Any]) -> str:
    """The verdict in a few words, with the flags and refuters that qualify it."""
    decided = claim["verdict"] in ("SUPPORTED", "CONTRADICTED", "INCONCLUSIVE")
    text = f"**{claim['verdict']}**"
    if decided and claim["counted"]:
        text = f"counted, {'as' if claim['verdict'] == 'SUPPORTED' else 'not as'} claimed"
    elif decided:
        text += f"{' after Holm' if _withdrawn(claim) else ''} at toy scale"
    winners = [f"`{r['arm']}`" for r in claim["refuters"] if r["wins"] and r["role"] == "refuter"]
    if winners and claim["verdict"] == "SUPPORTED":
        text += f", but {' and '.join(winners)}, which ought not to work, wins too"
    return text + "".join(f" ({flag})" for flag in claim["flags"])


def _withdrawn(claim: Mapping[str, Any]) -> bool:
    """Whether the interval decides, and Holm's rule alone takes the decision back."""
    p, adjusted = claim["p"], claim["p_holm"]
    withdrawn = p is not None and adjusted is not None and p < CERTAIN <= adjusted
    return bool(withdrawn and claim["verdict"] == "INCONCLUSIVE")


def _effect(claim: Mapping[str, Any]) -> str:
    """Effect and interval, with the metric in words where the card has them."""
    if claim["effect"] is None:
        return "-"
    low, high = claim["interval"]
    sign = "" if claim["type"] == "ratio" else "+"
    text = f"{claim['effect']:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"
    if claim["counted"]:
        text = f"{claim['effect']:{sign}g}"
    joined = "times the" if claim["type"] == "ratio" else "in"
    return f"{text} {joined} {claim['measure'] or claim['metric']}{_decisive(claim)}"


def _decisive(claim: Mapping[str, Any]) -> str:
    """Which pair of a claim about any two arms the effect is of; nothing for other claims."""
    if not claim["pairs"]:
        return ""
    return f", decisive of {len(claim['pairs'])} pairs: {' - '.join(claim['decisive'])}"


def _chance(claim: Mapping[str, Any]) -> str:
    """The p that decides: Holm's of a secondary claim, none where nothing is left to chance."""
    if claim["p"] is None or claim["counted"]:
        return "-"
    adjusted = claim["p_holm"]
    return f"{claim['p']:.2g}" if adjusted is None else f"{adjusted:.2g} (Holm)"


def _basis(card: Card, claim: Mapping[str, Any]) -> str:
    """What an effect rests on: seeds, checkpoints, worlds, and how many of what was asked."""
    starts = any(name.endswith(".safetensors") for name in card.assets)
    counts = [(claim["seeds"], "seed"), (claim["worlds"], "world")]
    if starts or claim["inits"] > 1:
        counts.insert(1, (claim["inits"], "checkpoint"))
    runs = ", ".join(f"{number} {name}{'s' if number != 1 else ''}" for number, name in counts)
    asked = f"{claim['queries']:,} {claim['units'] or 'evaluation units'}"
    return f"{runs}; {asked if claim['queries'] else 'means of runs'}; {claim['method']}"


def _grade(text: str) -> str:
    """A grade in words: FOUND-A/C is stated by the authors in part, in part by one reader."""

    def worded(match: re.Match[str]) -> str:
        told = [GRADES[letter] for letter in match[1].split("/")]
        return told[0] if len(told) == 1 else f"in part {', in part '.join(told)}"

    return re.sub(r"FOUND-([ABC](?:/[ABC])*)", worded, text)


def _said(claim: Mapping[str, Any]) -> str:
    """Whose claim it is, and what the paper says."""
    value = "" if claim["paper_value"] == "none" else claim["paper_value"]
    told = " ".join(filter(None, (value, claim["paper_where"])))
    grade = _grade(re.sub(r"^ours(; )?", "", claim["grade"]))
    return "; ".join(filter(None, (f"**{claim['whose']}**", told, grade)))


# --- tables ---------------------------------------------------------------------------------------


def _table(*rows: Iterable[Any]) -> str:
    """Rows of Markdown, the first one as the head."""
    cells = [[str(text).replace("|", "\\|").replace("\n", " ") for text in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|---" * len(cells[0]) + "|", *lines[1:]])


def card_box(chapter: str) -> str:
    """The box at the top of a chapter, in Markdown: question, verdict, evidence, cost, scope."""
    card = Card.read(chapter)
    claim = next(claim for claim in to_json(card)["claims"] if claim["primary"])
    rows = [("", ""), ("Question", card.question), ("Claim", claim["text"])]
    rows += [("Whose claim", claim["whose"]), ("Verdict", _headline(claim))]
    if claim["effect"] is not None:
        effect = _effect(claim)
        if not claim["pairs"]:
            effect += ", {treatment} against {baseline}".format(**claim["arms"])
        rows.append(("Effect, 95 % interval", effect))
        rows.append(("Rests on", _basis(card, claim)))
        reach = f"{claim['smallest_detectable_effect']:.4f}"
        rows.append(("Smallest effect it could have seen", f"{reach} (80 % power)"))
    for need in claim["preconditions"]:
        state = {True: "met", False: "not met", None: "not measured"}[need["met"]]
        rows.append(("Needs", f"{need['text']}: {state}"))
    rows += [_rivals(claim, role) for role in ("control", "refuter")]
    rows += [("This page", _cost(row)) for row in claim["profiles"] if row["name"] == "toy"]
    if cost := claim["cost"]:
        spent = f"{cost['cells']} runs, {cost['cpu_seconds'] / 3600:.1f} CPU-hours"
        rows.append(("Grid", f"{spent}, last run {str(cost['last_run'])[:10]}"))
        day = str(claim["last_verified"])[:10]
        verified = f"{day}, a run of each arm again with equal numbers"
        rows.append(("Last verified", verified if claim["last_verified"] else "not since it ran"))
    rows.append(("Scope", card.scope))
    link = f"[arXiv {card.paper.arxiv}](https://arxiv.org/abs/{card.paper.arxiv})"
    return f"**{card.paper.title}**, {link}\n\n{_table(*(row for row in rows if row[1] != '-'))}\n"


def _rivals(claim: Mapping[str, Any], role: str) -> tuple[str, str]:
    """Whether the claim, said of a control or refuter in the method's place, holds as well."""
    told = {"SUPPORTED": "wins", "CONTRADICTED": "does not", "INCONCLUSIVE": "undecided"}
    found = [
        f"`{rival['arm']}`: {told.get(rival['verdict'], 'not run')}"
        + ("" if rival["effect"] is None else f" ({rival['effect']:+.4f})")
        for rival in claim["refuters"]
        if rival["role"] == role
    ]
    return f"{role.capitalize()}s in its place", "; ".join(found) or "-"


def claims_table(chapter: str) -> str:
    """All claims of a chapter with their verdicts; the paper's figures have their own column."""
    head = (
        "Claim",
        "Type",
        "Effect, 95 % interval",
        "p",
        "Verdict",
        "Whose; the paper, at its scale",
    )
    rows = []
    for claim in to_json(Card.read(chapter))["claims"]:
        kind = claim["type"].replace("_", "-") + (" of any two" if claim["arms"]["among"] else "")
        kind += ", primary" if claim["primary"] else ""
        kind += f" ({claim['margin']:g})" if claim["margin"] else ""
        text = claim["text"] + (f" *Erratum: {claim['erratum']}*" if claim["erratum"] else "")
        rows.append((text, kind, _effect(claim), _chance(claim), _headline(claim), _said(claim)))
    return _table(head, *rows)


def card_details(chapter: str) -> dict[str, str]:
    """The rest of a card by title, in Markdown: its history, what was tried, what is unstated."""
    card = Card.read(chapter)
    entries = [(change.date, change.what) for change in card.changes]
    for entry in card.registrations:
        named = f": {', '.join(entry.claims)}" if entry.claims else ""
        entries.append((entry.date, f"Registered, commit {entry.commit}{named}"))
    tried = [(row.dials, row.showed, row.world_seeds) for row in card.regimes]
    cost = [(row.name, row.status, row.device, _cost(asdict(row))) for row in card.profiles]
    found = {
        "History of the registration": _table(("When (UTC)", "What"), *sorted(entries)),
        "Settings looked at beforehand": _table(("Setting", "What it showed", "Worlds"), *tried),
        "What the paper leaves unstated": "\n".join(f"* {line}" for line in card.unstated),
        "Profiles and their cost": _table(("Profile", "Status", "On", "Cost"), *cost),
    }
    filled = (entries, tried, card.unstated, cost)
    return {title: text for (title, text), rows in zip(found.items(), filled, strict=True) if rows}


def _cost(profile: Mapping[str, Any]) -> str:
    """Minutes and memory of a profile, as far as they were measured."""
    measured = ((profile["minutes"], "minutes"), (profile["memory_gb"], "GB of memory"))
    return ", ".join(f"{value:g} {unit}" for value, unit in measured if value) or "not measured"


def claims_markdown(chapter: str) -> str:
    """The claims of a chapter as a table, then the rest of its card, folded."""
    folded = (
        f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>"
        for title, text in card_details(chapter).items()
    )
    return "\n\n".join([claims_table(chapter), *folded])


def scoreboard_markdown(prefix: str = "../chapters/", primary_only: bool = False) -> str:
    """Every registered claim of every card; links to chapters begin with `prefix`.

    Args:
        primary_only: leave out the others, but for the paper's own claim on the same two arms
            where the primary one is ours.
    """
    head = ("Chapter", "What we tested", "Whose claim", "Effect, 95 % interval", "Verdict")
    rows = []
    for path in sorted(cards_folder().glob("*.yaml")):
        card = to_json(Card.read(path.stem))
        name = chapter_name(path.stem, card["paper"]["title"].partition(":")[0])
        for claim in _chosen(card["claims"]) if primary_only else card["claims"]:
            row = (claim["text"], claim["whose"], _effect(claim), _headline(claim))
            rows.append((f"[{name}]({prefix}{path.stem}.py)", *row))
    return _table(head, *rows) if rows else "No chapter has a card yet."


def _chosen(claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The primary claim, and after one of ours the first of the paper's on the same arms."""
    primary = next(claim for claim in claims if claim["primary"])
    theirs = [c for c in claims if c["arms"] == primary["arms"] and not _ours(c)]
    return [primary, *theirs[:1]] if _ours(primary) else [primary]


def _ours(claim: Mapping[str, Any]) -> bool:
    return str(claim["whose"]).startswith("ours")


def changes_markdown(prefix: str = "../chapters/") -> str:
    """What was changed or found wrong in a registration, of all cards, the latest first."""
    rows = []
    for path in cards_folder().glob("*.yaml"):
        card = Card.read(path.stem)
        link = f"[{chapter_name(path.stem, card.paper.title)}]({prefix}{path.stem}.py)"
        rows += [(change.date, link, change.what) for change in card.changes]
    rows.sort(reverse=True)
    return _table(("When (UTC)", "Chapter", "What"), *rows) if rows else "Nothing yet."


def readme_table() -> str:
    """The primary claims, with links from the root of the repository."""
    return scoreboard_markdown("chapters/", primary_only=True)
