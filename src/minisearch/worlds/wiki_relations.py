"""The words of the invented encyclopedia: relations, in three wordings each, and questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """Every `subject` has exactly one `object`; the noun is the word that questions use.

    Args:
        wordings: (keyword, sentence from the subject's side, sentence from the object's side); the
            first keyword is the noun.
    """

    noun: str
    subject: str
    object: str
    wordings: tuple[tuple[str, str, str], ...]

    @property
    def keywords(self) -> tuple[str, ...]:
        """The word by which each wording is found."""
        return tuple(keyword for keyword, _, _ in self.wordings)


def _relation(noun: str, subject: str, object_: str, *others: tuple[str, str, str]) -> Relation:
    named = (noun, f"the {noun} of {{s}} is {{o}}", f"{{o}} is the {noun} of {{s}}")
    return Relation(noun, subject, object_, (named, *others))


# fmt: off
RELATIONS = (
    _relation("birthplace", "person", "city",
        ("born", "{s} was born in {o}", "{o} is where {s} was born"),
        ("hails", "{s} hails from {o}", "{o} is where {s} hails from")),
    _relation("employer", "person", "company",
        ("works", "{s} works for {o}", "for {o} works {s}"),
        ("hired", "{s} was hired by {o}", "{o} hired {s}")),
    _relation("mentor", "person", "person",
        ("studied", "{s} studied under {o}", "under {o} studied {s}"),
        ("taught", "{s} was taught by {o}", "{o} taught {s}")),
    _relation("mayor", "city", "person",
        ("governed", "{s} is governed by {o}", "{o} governed {s}"),
        ("elected", "{s} elected {o}", "{o} was elected in {s}")),
    _relation("twin", "city", "city",
        ("paired", "{s} is paired with {o}", "with {o} is paired {s}"),
        ("sister", "{s} has a sister in {o}", "{o} is a sister to {s}")),
    _relation("architect", "city", "person",
        ("designed", "{s} was designed by {o}", "{o} designed {s}"),
        ("planned", "{s} was planned by {o}", "{o} planned {s}")),
    _relation("headquarters", "company", "city",
        ("based", "{s} is based in {o}", "{o} is where {s} is based"),
        ("offices", "{s} has its offices in {o}", "{o} has the offices of {s}")),
    _relation("chief", "company", "person",
        ("led", "{s} is led by {o}", "{o} led {s}"),
        ("managed", "{s} is managed by {o}", "{o} managed {s}")),
    _relation("parent", "company", "company",
        ("owned", "{s} is owned by {o}", "{o} owned {s}"),
        ("acquired", "{s} was acquired by {o}", "{o} acquired {s}")),
    _relation("director", "film", "person",
        ("shot", "{s} was shot by {o}", "{o} shot {s}"),
        ("filmed", "{s} was filmed by {o}", "{o} filmed {s}")),
    _relation("star", "film", "person",
        ("features", "{s} features {o}", "{o} is who {s} features"),
        ("casts", "{s} casts {o}", "{o} is who {s} casts")),
    _relation("studio", "film", "company",
        ("produced", "{s} was produced by {o}", "{o} produced {s}"),
        ("financed", "{s} was financed by {o}", "{o} financed {s}")),
    _relation("setting", "film", "city",
        ("unfolds", "{s} unfolds in {o}", "{o} is where {s} unfolds"),
        ("happens", "{s} happens in {o}", "{o} is where {s} happens")),
)
# Never asked: {subject: [(object, sentence)]}. They mention an entity of a kind that answers have.
DISTRACTIONS = {
    "person": [("city", "{s} once visited {o}"), ("person", "{s} admires {o}"),
               ("company", "{s} wrote about {o}")],
    "city": [("city", "{s} lies near {o}"), ("person", "{s} honours {o}")],
    "company": [("company", "{s} competes with {o}"), ("person", "{s} once sued {o}"),
                ("city", "{s} once left {o}")],
    "film": [("city", "{s} opened in {o}"), ("person", "{s} was praised by {o}"),
             ("company", "{s} was restored by {o}")],
}
# fmt: on
BY_NOUN = {relation.noun: relation for relation in RELATIONS}
QUESTION_FORMS = ("{wh} is {chain} ?", "name {chain} .", "tell me {chain} .")


def ask(nouns: Sequence[str], subject: str, form: int) -> str:
    """The question text for relations in the order in which they are followed."""
    chain = " of ".join(f"the {noun}" for noun in reversed(nouns)) + f" of {subject}"
    who = "who" if BY_NOUN[nouns[-1]].object == "person" else "what"
    return QUESTION_FORMS[form].format(wh=who, chain=chain)
