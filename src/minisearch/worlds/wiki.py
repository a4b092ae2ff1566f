"""A small invented encyclopedia, and questions that need one to three of its passages.

People, cities, companies and films are tied by thirteen relations. A passage states one fact in one
of three wordings, so that a question's own word often finds nothing. The passages that answer each
step of a question are known. Rows are those of `data.qa`, as Search-R1 and FlashRAG write them.

Which facts a pre-trained model has met is a property of the world's kind: every `blank` world is
new to it, of a `knowing` world it has read a set share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from minisearch.data.qa import Document, Hop, Question
from minisearch.errors import InputError, one_of
from minisearch.profiles import derive_seed
from minisearch.worlds.shop_catalogue import invented_names
from minisearch.worlds.wiki_relations import BY_NOUN, DISTRACTIONS, RELATIONS, ask

KINDS = ("blank", "knowing")
# What a world is for follows from its seed, so that no world can serve two ends.
ROLES = {
    "evaluation": range(0, 100),
    "development": range(100, 200),
    "training": range(200, 300),
    "pretraining": range(1000, 1_000_000),
}
# The knowing worlds whose facts are in the shipped models' pre-training. Those for evaluation and
# development are told one fact at a time. Of the others it is also asked chains of known facts, of
# 200 to 202 it is told answers after partial evidence, and 1000 and 1001 show how remembering is
# used.
KNOWING_SEEDS = (0, 1, 2, 100, 200, 201, 202, 1000, 1001)


_PARTS = {"person": 60, "city": 40, "company": 40, "film": 40}  # first names; as many second names


@dataclass(frozen=True)
class WikiConfig:
    """The dials of a world.

    Names and facts depend on the numbers of entities, the kind and the seed alone: the other dials
    change how the same facts are written down. The shipped models have read knowing worlds with
    the sizes and the share given here.
    """

    people: int = 40
    cities: int = 20
    companies: int = 20
    films: int = 20
    kind: str = "blank"  # or "knowing": a model's pre-training held `known_share` of the facts
    known_share: float = 0.5  # of a knowing world's facts
    mismatch: float = 0.67  # share of passages that avoid the word the question uses
    inverse: float = 0.2  # share of passages written, and titled, from the object's side
    distractors: float = 1.0  # further passages an entity, about what is never asked
    copies: int = 1  # passages a fact, each in a wording of its own

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise one_of("parameter kind", self.kind, list(KINDS))
        for name in ("known_share", "mismatch", "inverse"):
            if not 0 <= getattr(self, name) <= 1:
                found = str(getattr(self, name))
                raise InputError(f"parameter {name}", found, "a share, 0 to 1", f"change {name}.")
        for name, least in (("people", 2), ("cities", 2), ("companies", 2), ("films", 0)):
            if getattr(self, name) < least:
                found = str(getattr(self, name))
                raise InputError(f"parameter {name}", found, f"{least} or more", f"raise {name}.")
        if self.distractors < 0:
            found = str(self.distractors)
            raise InputError("parameter distractors", found, "0 or more", "raise distractors.")
        if not 1 <= self.copies <= 3:
            expected = "1 to 3, the wordings of a fact"
            raise InputError("parameter copies", str(self.copies), expected, "change copies.")


@dataclass(frozen=True)
class Fact:
    """`object` is the `noun` of `subject`."""

    noun: str
    subject: str
    object: str

    def sentence(self, wording: int, inverse: bool = False) -> str:
        """The fact in one of its three wordings."""
        template = BY_NOUN[self.noun].wordings[wording][1 + inverse]
        return template.format(s=self.subject, o=self.object) + " ."


def role_of(world_seed: int) -> str:
    """What a world of this seed is for. Raises: InputError for a seed outside every range."""
    for role, seeds in ROLES.items():
        if world_seed in seeds:
            return role
    ranges = ", ".join(f"{role} {seeds.start}-{seeds.stop - 1}" for role, seeds in ROLES.items())
    raise InputError("world_seed", str(world_seed), f"one of {ranges}", "choose another seed.")


@lru_cache(maxsize=1)
def name_parts() -> dict[str, tuple[list[str], list[str]]]:
    """First and second names of each kind of entity; no part serves two kinds or places."""
    taken = {word for r in RELATIONS for _, *s in r.wordings for text in s for word in text.split()}
    rng = np.random.default_rng(derive_seed(0, "wiki", "parts"))
    parts = [name for name in invented_names(rng, 2 * sum(_PARTS.values()) + 20)]
    free = iter(part for part in parts if part not in taken)
    return {
        kind: ([next(free) for _ in range(n)], [next(free) for _ in range(n)])
        for kind, n in _PARTS.items()
    }


def _pool(kind: str, world_kind: str, world_seed: int, count: int) -> list[str]:
    """`count` names of one kind of entity for one world.

    A knowing world has names of its own. Blank worlds share names only with worlds of their role.
    """
    first, second = name_parts()[kind]
    rng = np.random.default_rng(derive_seed(0, "wiki", "pool", kind))
    order = rng.permutation(len(first) * len(second))
    share = len(order) // 6
    if world_kind == "knowing":
        slot, width = _knowing_slot(world_seed), 2 * share // len(KNOWING_SEEDS)
        pool = order[slot * width : (slot + 1) * width]
    else:
        part = 2 + list(ROLES).index(role_of(world_seed))
        pool = order[part * share : (part + 1) * share]
    if count > len(pool):
        expected = f"at most {len(pool)} in a {world_kind} world"
        raise InputError(f"entities of kind {kind}", str(count), expected, "make a smaller world.")
    rng = np.random.default_rng(derive_seed(world_seed, "wiki", world_kind, "names", kind))
    chosen = rng.choice(pool, count, replace=False)
    return [f"{first[i // len(second)]} {second[i % len(second)]}" for i in chosen]


def _knowing_slot(world_seed: int) -> int:
    if world_seed not in KNOWING_SEEDS:
        expected = "one of " + ", ".join(map(str, KNOWING_SEEDS))
        remedy = "no model has read another one: choose one of these, or a blank world."
        raise InputError("world_seed of a knowing world", str(world_seed), expected, remedy)
    return KNOWING_SEEDS.index(world_seed)


class Wiki:
    """One world: entities, facts and passages.

    Args:
        config: the dials.
        world_seed: also decides what the world is for, see `ROLES`.

    Raises:
        InputError: for a seed outside the ranges, or more entities than there are names.
    """

    def __init__(self, config: WikiConfig, world_seed: int) -> None:
        self.config, self.world_seed, self.role = config, world_seed, role_of(world_seed)
        counts = (config.people, config.cities, config.companies, config.films)
        self.entities = {
            kind: _pool(kind, config.kind, world_seed, count)
            for kind, count in zip(_PARTS, counts, strict=True)
        }
        self.facts = list(self._make_facts())
        self.fact_of = {(fact.noun, fact.subject): fact for fact in self.facts}
        self.known = self._make_known()

    def _rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.world_seed, "wiki", self.config.kind, name))

    def _make_facts(self) -> Iterator[Fact]:
        rng = self._rng("facts")
        for relation in RELATIONS:
            for subject in self.entities[relation.subject]:
                others = [name for name in self.entities[relation.object] if name != subject]
                yield Fact(relation.noun, subject, others[rng.integers(len(others))])

    def _make_known(self) -> frozenset[Fact]:
        """The facts a pre-trained model has read; of a blank world, none."""
        if self.config.kind == "blank":
            return frozenset()
        order = self._rng("known").permutation(len(self.facts))
        return frozenset(
            self.facts[i] for i in order[: round(self.config.known_share * len(order))]
        )

    @cached_property
    def _written(self) -> list[tuple[Fact | None, str, str]]:
        """(fact or None for a distractor, title, text), in the order of the passages."""
        rng, config = self._rng("passages"), self.config
        rows: list[tuple[Fact | None, str, str]] = []
        for fact in self.facts:
            first = 0 if rng.random() >= config.mismatch else int(rng.integers(1, 3))
            wordings = [first, *rng.permutation([w for w in range(3) if w != first])]
            inverse = bool(rng.random() < config.inverse)
            title = fact.object if inverse else fact.subject
            for wording in wordings[: config.copies]:
                rows.append((fact, title, fact.sentence(int(wording), inverse)))
        everyone = [(kind, name) for kind, names in self.entities.items() for name in names]
        for n in range(round(config.distractors * len(everyone))):
            kind, subject = everyone[n % len(everyone)]
            target, sentence = DISTRACTIONS[kind][rng.integers(len(DISTRACTIONS[kind]))]
            others = [name for name in self.entities[target] if name != subject]
            text = sentence.format(s=subject, o=others[rng.integers(len(others))])
            rows.append((None, subject, f"{text} ."))
        return [rows[i] for i in rng.permutation(len(rows))]

    @cached_property
    def corpus(self) -> list[Document]:
        """The passages, in no meaningful order; ids are unique over worlds."""
        prefix = f"{self.config.kind}-{self.world_seed}"
        return [
            {"id": f"{prefix}-{n}", "contents": f'"{title}"\n{text}'}
            for n, (_, title, text) in enumerate(self._written)
        ]

    @cached_property
    def gold_ids(self) -> dict[Fact, list[str]]:
        """The passages that state each fact."""
        found: dict[Fact, list[str]] = {fact: [] for fact in self.facts}
        for (fact, _, _), document in zip(self._written, self.corpus, strict=True):
            if fact is not None:
                found[fact].append(document["id"])
        return found

    def chain(self, subject: str, nouns: Sequence[str]) -> list[Fact]:
        """The facts that lead from an entity along relations, first step first."""
        facts: list[Fact] = []
        for noun in nouns:
            facts.append(self.fact_of[noun, facts[-1].object if facts else subject])
        return facts

    def questions(
        self, count: int, hops: Sequence[int] = (1, 2, 3), seed: int = 0
    ) -> list[Question]:
        """Different questions, as many of each number of hops as of the others (within one).

        No question leads through the same entity twice, so that its answer is not in its text.

        Raises:
            InputError: where the world has too few questions of a kind.
        """
        rng = np.random.default_rng(
            derive_seed(self.world_seed, "wiki", self.config.kind, "questions", seed)
        )
        seen: set[tuple[str, ...]] = set()
        rows: list[Question] = []
        tries = 0
        while len(rows) < count:
            length = hops[len(rows) % len(hops)]
            facts = self.random_chain(length, rng)
            key = (facts[0].subject, *(fact.noun for fact in facts)) if facts else ()
            tries += 1
            if tries > 60 * count + 1000:
                found = f"{len(rows)} different ones after {tries} tries"
                raise InputError("questions", found, f"{count}", "ask for fewer, or of more hops.")
            if key and key not in seen:
                seen.add(key)
                rows.append(self.question(facts, f"{seed}-{len(rows)}", int(rng.integers(3))))
        return rows

    def random_chain(self, length: int, rng: np.random.Generator) -> list[Fact]:
        """Facts that each start where the one before ends, or none: a chain never comes back."""
        first = self.facts[rng.integers(len(self.facts))]
        facts = [first]
        while len(facts) < length:
            here = facts[-1].object
            nexts = [n for n in BY_NOUN if (n, here) in self.fact_of]
            facts.append(self.fact_of[nexts[rng.integers(len(nexts))], here])
        visited = {first.subject, *(fact.object for fact in facts)}
        return facts if len(visited) == length + 1 else []

    def question(self, facts: Sequence[Fact], number: str, form: int = 0) -> Question:
        """The question whose answer a chain of facts gives; its id ends with `number`."""
        hops: list[Hop] = [
            {
                "question": ask([fact.noun], fact.subject, 0),
                "answer": fact.object,
                "gold_ids": self.gold_ids[fact],
            }
            for fact in facts
        ]
        nouns = [fact.noun for fact in facts]
        return {
            "id": f"{self.config.kind}-{self.world_seed}-q{number}",
            "question": ask(nouns, facts[0].subject, form),
            "golden_answers": [facts[-1].object],
            "metadata": {
                "type": f"{len(facts)}-hop",
                "hops": hops,
                "entity": facts[0].subject,
                "relations": nouns,
                "known": [fact in self.known for fact in facts],
            },
        }
