"""Reproduction cards shown: as JSON, as the tables of a chapter, as the scoreboard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from minisearch.cells import code_key, read_json
from minisearch.claims import Card, cards_folder
from minisearch.storage import project_root


def to_json(card: Card) -> dict[str, Any]:
    """A card as plain values: `claims`, each with its verdict, evidence, cost and flags."""
    results = _results(card)
    flags = _flags(card, results)
    unmeasured, measured = {"value": None, "met": None}, results["preconditions"]
    needs = [
        {"id": name, **asdict(need), **measured.get(name, unmeasured)}
        for name, need in card.preconditions.items()
    ]
    claims = []
    for name in card.claims:
        own = [need for need in needs if need["id"] in card.needs(name)]
        claims.append(_claim_json(card, name, results) | {"preconditions": own, "flags": flags})
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
    own = asdict(claim)
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


def _flags(card: Card, results: Mapping[str, Any]) -> list[str]:
    flags = [] if card.registered else ["UNREGISTERED"]
    first = (results["cost"] or {}).get("first_run")
    if card.registered and first and first[:10] < card.registered.date[:10]:
        flags.append("RUN-BEFORE-REGISTRATION")
    if results["code_keys"]:
        now = code_key(project_root() / "chapters" / f"{card.chapter}.py")
        if set(results["code_keys"]) != {now} and now not in results["rechecked"]:
            flags.append("STALE")
    return flags


def _headline(claim: Mapping[str, Any]) -> str:
    """The verdict in a few words, with the flags and refuters that qualify it."""
    decided = claim["verdict"] in ("SUPPORTED", "CONTRADICTED", "INCONCLUSIVE")
    text = f"**{claim['verdict']}**" + (" at toy scale" if decided else "")
    winners = [r["arm"] for r in claim["refuters"] if r["wins"] and r["role"] == "refuter"]
    if winners and claim["verdict"] == "SUPPORTED":
        text += f", but {' and '.join(winners)}, which ought not to work, wins too"
    return text + "".join(f" ({flag})" for flag in claim["flags"])


def _effect(claim: Mapping[str, Any]) -> str:
    if claim["effect"] is None:
        return "-"
    low, high = claim["interval"]
    sign = "" if claim["type"] == "ratio" else "+"
    return f"{claim['effect']:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]{_whose(claim)}"


def _whose(claim: Mapping[str, Any]) -> str:
    """Which pair of a claim about any two arms the effect is of; nothing for other claims."""
    if not claim["pairs"]:
        return ""
    return f", decisive of {len(claim['pairs'])} pairs: {' - '.join(claim['decisive'])}"


def _table(*rows: tuple[str, ...]) -> str:
    """Rows of Markdown, the first one as the head."""
    cells = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def card_box(chapter: str) -> str:
    """The box at the top of a chapter, in Markdown: question, verdict, evidence, cost, scope."""
    card = Card.read(chapter)
    claim = next(claim for claim in to_json(card)["claims"] if claim["primary"])
    rows = [
        ("", ""),
        ("Question", card.question),
        ("Claim", claim["text"]),
        ("Verdict", _headline(claim)),
    ]
    if claim["effect"] is not None:
        effect = f"{_effect(claim)} in {claim['metric']}"
        if not claim["pairs"]:
            effect += ", {treatment} against {baseline}".format(**claim["arms"])
        rows.append(("Effect, 95 % interval", effect))
        basis = f"{claim['seeds']} seeds, {claim['worlds']} worlds, {claim['queries']:,} queries"
        rows.append(("Rests on", f"{basis}; {claim['method']}"))
        reach = f"{claim['smallest_detectable_effect']:.4f}"
        rows.append(("Smallest effect it could have seen", f"{reach} (80 % power)"))
    for need in claim["preconditions"]:
        state = {True: "met", False: "not met", None: "not measured"}[need["met"]]
        rows.append(("Needs", f"{need['text']}: {state}"))
    if cost := claim["cost"]:
        spent = f"{cost['cells']} runs, {cost['cpu_seconds'] / 3600:.1f} CPU-hours"
        rows.append(("Grid", f"{spent}, last run {str(cost['last_run'])[:10]}"))
    rows.append(("Scope", card.scope))
    link = f"[arXiv {card.paper.arxiv}](https://arxiv.org/abs/{card.paper.arxiv})"
    return f"**{card.paper.title}**, {link}\n\n{_table(*rows)}\n"


def claims_markdown(chapter: str) -> str:
    """All claims of a chapter with their verdicts; the paper's figures have their own column."""
    head = (
        "Claim",
        "Type",
        "Effect, 95 % interval",
        "p (Holm)",
        "Verdict",
        "The paper, at its scale",
    )
    rows = []
    for claim in to_json(Card.read(chapter))["claims"]:
        p = claim["p_holm"] if claim["p_holm"] is not None else claim["p"]
        kind = claim["type"].replace("_", "-") + (" of any two" if claim["arms"]["among"] else "")
        kind += ", primary" if claim["primary"] else ""
        kind += f" ({claim['margin']:g})" if claim["margin"] else ""
        said = " ".join(filter(None, (claim["paper_value"], claim["paper_where"], claim["grade"])))
        shown = "-" if p is None else f"{p:.2g}"
        rows.append((claim["text"], kind, _effect(claim), shown, _headline(claim), said))
    return _table(head, *rows)


def scoreboard_markdown(prefix: str = "../chapters/", primary_only: bool = False) -> str:
    """Every registered claim of every card; links to chapters begin with `prefix`."""
    rows = [("Chapter", "Claim", "Effect, 95 % interval", "Verdict")]
    for path in sorted(cards_folder().glob("*.yaml")):
        card = to_json(Card.read(path.stem))
        link = f"[{card['paper']['title'].partition(':')[0]}]({prefix}{path.stem}.py)"
        for claim in card["claims"]:
            if claim["primary"] or not primary_only:
                rows.append((link, claim["text"], _effect(claim), _headline(claim)))
    return _table(*rows) if len(rows) > 1 else "No chapter has a card yet."


def readme_table() -> str:
    """The primary claims, with links from the root of the repository."""
    return scoreboard_markdown("chapters/", primary_only=True)
