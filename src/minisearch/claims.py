"""What stands on a reproduction card before any grid is run: `book/cards/<chapter>.yaml`.

The file is checked field by field against the dataclasses below. No result is ever in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from minisearch.cells import Cell, expand, parse_range
from minisearch.errors import InputError, one_of
from minisearch.schema import checked
from minisearch.stats import ClaimType
from minisearch.storage import project_root

FEWEST_SEEDS = {True: 5, False: 3}  # of a trained arm in a primary claim, in a secondary one
# Fields of a claim that say how to show it: no part of what was registered.
NOTES = ("measure", "units", "whose", "counted", "erratum")


@dataclass(frozen=True)
class Paper:
    title: str
    arxiv: str
    code: str = "none"


@dataclass(frozen=True)
class Arm:
    """One way of doing it; `seed_range` and `inits` where it runs on fewer than the grid.

    A control or refuter bears on the named `claim`, by default on the primary one.
    """

    label: str
    seeds: Literal["trained", "deterministic"]
    role: Literal["main", "control", "refuter", "ablation", "reference"]
    seed_range: str = ""
    claim: str = ""
    inits: str = ""


@dataclass(frozen=True)
class Claim:
    """One sentence that can turn out false; `margin` is the threshold of a ratio claim.

    An equivalence claim with further arms `among` says that any two of all its arms are equivalent.

    Notes, which may be written later: the metric in words (`measure`), what its rows are (`units`),
    `whose` claim it is where `paper_value` does not tell, whether the effect is `counted`, without
    chance in it, and an `erratum` of the text, which stays as it was registered.
    """

    text: str
    type: ClaimType
    treatment: str
    baseline: str
    metric: str
    evaluation_set: str
    primary: bool = False
    margin: float = 0.0
    paper_value: str = "none"
    paper_where: str = ""
    grade: str = ""
    among: tuple[str, ...] = ()
    measure: str = ""
    units: str = ""
    whose: str = ""
    counted: bool = False
    erratum: str = ""

    @property
    def owner(self) -> str:
        """Whose claim it is: "the paper's" or "ours", and what of it is not."""
        return self.whose or ("ours" if self.paper_value == "none" else "the paper's")

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm that the claim compares."""
        return (self.treatment, self.baseline, *self.among)


@dataclass(frozen=True)
class Precondition:
    """What the method needs: `metric`, less `against` if given, beyond a threshold everywhere.

    Without it the named `claims` say nothing; by default no claim does.
    """

    text: str
    metric: str
    threshold: float
    direction: Literal["above", "below"]
    against: str = ""
    claims: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    profile: str
    worlds: str
    seeds: str
    inits: str = "0"


@dataclass(frozen=True)
class Regime:
    dials: str
    showed: str
    world_seeds: str


@dataclass(frozen=True)
class Tuning:
    arm: str
    sweep: str
    chosen: str
    worlds: str
    seeds: str


@dataclass(frozen=True)
class Deviation:
    n: int
    paper: str
    ours: str
    reason: str
    effect: str


@dataclass(frozen=True)
class ProfileCost:
    name: str
    status: Literal["measured", "not run"]
    device: str
    minutes: float | None = None
    memory_gb: float | None = None
    command: str = ""


@dataclass(frozen=True)
class Registered:
    """The commit that fixed claims, and its time in UTC; a later one names its `claims`."""

    date: str
    commit: str
    claims: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """What was changed of a registration or found wrong in it, and when (UTC)."""

    date: str
    what: str


@dataclass(frozen=True)
class Card:
    """One chapter's card. In the file, `arms`, `claims` and `preconditions` are lists with ids."""

    chapter: str
    paper: Paper
    question: str
    arms: dict[str, Arm]
    claims: dict[str, Claim]
    grid: Grid
    scope: str
    preconditions: dict[str, Precondition]
    regimes: tuple[Regime, ...]
    tuning: tuple[Tuning, ...]
    deviations: tuple[Deviation, ...]
    unstated: tuple[str, ...]
    profiles: tuple[ProfileCost, ...]
    assets: tuple[str, ...] = ()
    registered: Registered | None = None
    registered_later: tuple[Registered, ...] = ()
    changes: tuple[Change, ...] = ()

    @classmethod
    def read(cls, chapter: str) -> Card:
        """The card of a chapter such as "01_kuaisearch".

        Raises:
            InputError: naming the file and the field that is missing, unknown or contradictory.
        """
        import yaml

        path = cards_folder() / f"{chapter}.yaml"
        if not path.is_file():
            raise one_of(
                "card of chapter", chapter, [p.stem for p in cards_folder().glob("*.yaml")]
            )
        try:
            content = yaml.safe_load(path.read_text("utf-8"))
        except yaml.YAMLError as error:
            found = " ".join(str(error).split())
            raise InputError(str(path), found, "YAML", "correct the syntax.") from error
        if not isinstance(content, dict):
            raise InputError(str(path), type(content).__name__, "named fields", "see other cards.")
        card: Card = checked(cls, {"chapter": chapter, **content}, path.name)
        card._check(path.name)
        return card

    def _check(self, where: str) -> None:
        if sum(claim.primary for claim in self.claims.values()) != 1:
            primaries = [name for name, claim in self.claims.items() if claim.primary]
            found = ", ".join(primaries) or "none"
            raise InputError(f"{where}, claims", found, "one primary claim", "mark exactly one.")
        for option in ("worlds", "inits"):
            parse_range(getattr(self.grid, option), f"{where}, grid.{option}")
        for name, arm in self.arms.items():
            if not set(self.inits(name)) <= set(parse_range(self.grid.inits)):
                remedy = "widen the grid, or narrow the arm."
                expected = f"some of the grid's, {self.grid.inits}"
                raise InputError(f"{where}, arms, {name}.inits", arm.inits, expected, remedy)
        for row in self.tuning:
            self._known(f"{where}, tuning", row.arm)
        named = [(f"arms, {name}", arm.claim) for name, arm in self.arms.items() if arm.claim]
        for need, precondition in self.preconditions.items():
            named += [(f"preconditions, {need}", claim) for claim in precondition.claims]
        named += [("registered", claim) for entry in self.registrations for claim in entry.claims]
        for place, claim_id in named:
            if claim_id not in self.claims:
                raise one_of(f"{where}, {place}, claim", claim_id, list(self.claims))
        for name, claim in self.claims.items():
            self._check_claim(f"{where}, claims, {name}", claim)
        self._check_dates(where)

    def _check_dates(self, where: str) -> None:
        dates = [entry.date for entry in self.registrations] + [c.date for c in self.changes]
        for date in dates:
            if not re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?", date):
                expected = "a day or a time such as 2026-01-02T03:04:05Z"
                raise InputError(f"{where}, date", date, expected, "write it in UTC.")

    def _check_claim(self, where: str, claim: Claim) -> None:
        if not claim.owner.startswith(("ours", "the paper's")):
            expected = "ours or the paper's, and then what differs"
            raise InputError(f"{where}, whose", claim.whose, expected, "begin with one of them.")
        for arm in claim.arms:
            self._known(where, arm)
        if claim.among and claim.type != "equivalence":
            remedy = "remove among, or claim equivalence."
            raise InputError(f"{where}, among", f"a {claim.type} claim", "equivalence", remedy)
        if claim.among and len(set(claim.arms)) < len(claim.arms):
            found = ", ".join(claim.arms)
            raise InputError(f"{where}, among", found, "each arm once", "remove repeated arms.")
        if (claim.margin > 0) == (claim.type == "superiority"):
            expected = "none" if claim.type == "superiority" else "a number above zero"
            remedy = "a superiority claim says more than zero, the others name their margin."
            raise InputError(f"{where}, margin", f"{claim.margin:g}", expected, remedy)
        seeds, floor = self.common_seeds(claim), FEWEST_SEEDS[claim.primary]
        trained = any(self.arms[arm].seeds == "trained" for arm in claim.arms)
        if trained and len(seeds) < floor:
            remedy = "register more seeds for its arms."
            raise InputError(f"{where}, seeds", f"{len(seeds)}", f"at least {floor}", remedy)
        if not self.common_inits(claim):
            raise InputError(f"{where}, inits", "none in common", "one", "widen its arms' inits.")

    def _known(self, where: str, arm: str) -> None:
        if arm not in self.arms:
            raise one_of(f"{where}, arm", arm, list(self.arms))

    @property
    def registrations(self) -> tuple[Registered, ...]:
        """The registration, and later ones of further claims."""
        return (self.registered, *self.registered_later) if self.registered else ()

    def registered_on(self, claim: str) -> str | None:
        """When a claim was registered; None if it was not."""
        later = [entry.date for entry in self.registered_later if claim in entry.claims]
        return max(later or [entry.date for entry in self.registrations[:1]], default=None)

    @property
    def primary(self) -> Claim:
        return next(claim for claim in self.claims.values() if claim.primary)

    def seeds(self, arm: str) -> tuple[int, ...]:
        """The seeds an arm runs on: the grid's, its own fewer ones, or one if deterministic."""
        text = self.arms[arm].seed_range or self.grid.seeds
        seeds = parse_range(text, f"card of {self.chapter}, seeds of {arm}")
        return seeds if self.arms[arm].seeds == "trained" else seeds[:1]

    def inits(self, arm: str) -> tuple[int, ...]:
        """The checkpoints an arm starts from: the grid's, or its own fewer ones."""
        text = self.arms[arm].inits or self.grid.inits
        return parse_range(text, f"card of {self.chapter}, inits of {arm}")

    def common_inits(self, claim: Claim) -> tuple[int, ...]:
        """The checkpoints that all of a claim's arms start from."""
        every = [self.inits(arm) for arm in claim.arms]
        return tuple(init for init in every[0] if all(init in inits for inits in every))

    def common_seeds(self, claim: Claim) -> tuple[int, ...]:
        """The seeds on which a claim's arms are paired; a deterministic arm pairs with any."""
        trained = [self.seeds(arm) for arm in claim.arms if self.arms[arm].seeds == "trained"]
        if not trained:
            return self.seeds(claim.treatment)
        return tuple(seed for seed in trained[0] if all(seed in seeds for seeds in trained))

    def cells(self, arm: str) -> list[Cell]:
        """The registered cells of one arm."""
        worlds, inits = parse_range(self.grid.worlds), self.inits(arm)
        return expand(self.chapter, self.grid.profile, [arm], worlds, self.seeds(arm), inits)

    def wants(self, cell: Cell) -> bool:
        """Whether a cell belongs into the log: of the grid, at any setting of the dials."""
        return cell.arm in self.arms and replace(cell, overrides=()) in self.cells(cell.arm)

    def logged_metrics(self, cell: Cell) -> list[str]:
        """The metrics whose per-query rows are kept for a cell: those of claims it bears on."""
        if cell.overrides:
            return []
        found = [claim.metric for claim in self.claims.values() if cell.arm in claim.arms]
        if cell.arm in self.rivals():
            found.append(self.rivalled(cell.arm).metric)
        return list(dict.fromkeys(found))

    def rivals(self) -> list[str]:
        """Controls and refuters: arms that ought not to do what the treatment does."""
        return [name for name, arm in self.arms.items() if arm.role in ("control", "refuter")]

    def needs(self, claim: str) -> list[str]:
        """The preconditions of a claim."""
        return [
            name
            for name, need in self.preconditions.items()
            if not need.claims or claim in need.claims
        ]

    def rivalled(self, arm: str) -> Claim:
        """The claim that a control or refuter bears on."""
        return self.claims.get(self.arms[arm].claim, self.primary)

    def digest(self) -> str:
        """Hash of what was registered, so that results of another registration are not shown."""
        names = ("claims", "preconditions", "arms", "grid")
        content = {name: asdict(self)[name] for name in names}
        optional = (
            ("claims", "among"), ("arms", "claim"), ("arms", "inits"), ("preconditions", "claims"),
        )  # fmt: skip
        for group, name in optional:  # an empty one is as if the field did not exist
            for entry in content[group].values():
                if not entry[name]:
                    del entry[name]
        for entry in content["claims"].values():
            for note in NOTES:
                del entry[note]
        registered = json.dumps(content, sort_keys=True)
        return hashlib.sha256(registered.encode()).hexdigest()[:16]


def cards_folder() -> Path:
    """Where cards, their results and (in `logs/`) their logs are kept."""
    return project_root() / "book" / "cards"
