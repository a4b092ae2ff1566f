"""What the shipped toy models can do, as tables and coloured attempts: for cards and pages.

Everything is read from the files that stand beside each model's weights.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from minisearch.data.qa import body_of, title_of
from minisearch.models.lm import ASSETS, TOY_MODELS
from minisearch.worlds.wiki import Wiki, WikiConfig

_PIECE = re.compile(r"<(\w+)>(.*?)</\1>", re.S)
HOPS = ("all", "1-hop", "2-hop", "3-hop")
Value = list[float]  # mean, low, high, number of questions


@dataclass(frozen=True)
class Precondition:
    """Something that the methods need of a model before they can be tested with it.

    Args:
        text: what is needed.
        path: where the measured value stands.
        wanted: the condition in words.
        met: the condition on (mean, low, high).
    """

    text: str
    path: tuple[str, ...]
    wanted: str
    met: Callable[[float, float, float], bool]


def _between(low: float, high: float) -> tuple[str, Callable[[float, float, float], bool]]:
    return f"{low:.2f} to {high:.2f}", lambda mean, _low, _high: low <= mean <= high


def _above(bound: float) -> tuple[str, Callable[[float, float, float], bool]]:
    return f"whole interval above {bound:.2f}", lambda _mean, low, _high: low > bound


def _below(bound: float) -> tuple[str, Callable[[float, float, float], bool]]:
    return f"whole interval below {bound:.2f}", lambda _mean, _low, high: high < bound


# Bridge hops of blank worlds are left out: no reader's answer could react to them.
GAINS = (
    ("last hop", "blank"),
    ("last of several hops", "blank"),
    ("last hop", "knowing"),
    ("last of several hops", "knowing"),
    ("bridge, rest known", "knowing"),
)
# fmt: off
PRECONDITIONS = tuple(
    Precondition(text, path, *rule)
    for text, path, rule in (
        *((f"EM without help, {kind} worlds, {how}", ("policy", kind, how, "exact match", "all"),
           _between(0.15, 0.40)) for kind in ("blank", "knowing") for how in ("T=1", "greedy")),
        *((f"well-formed attempts, {kind} worlds, {how}", ("policy", kind, how, "well formed"),
           _above(0.95)) for kind in ("blank", "knowing") for how in ("T=1", "greedy")),
        *((f"EM gained by {name}, {how}", ("hints", "blank", how, f"gain: {name}"), _above(0.20))
          for name in ("one right sibling", "a right sibling as reference")
          for how in ("T=1", "greedy")),
        ("EM without a search, knowing worlds, greedy",
         ("closed book", "knowing", "all"), _between(0.10, 0.25)),
        ("EM without a search, blank worlds, greedy",
         ("closed book", "blank", "all"), _below(0.05)),
        *((f"gold answer's gain when the passage is found, {hop}, {kind} worlds",
           ("evidence", kind, hop, "found, gain"), _above(0.0)) for hop, kind in GAINS),
        *((f"ROC-AUC of that gain, {hop}, {kind} worlds",
           ("evidence", kind, hop, "AUC of the gain"), _above(0.5)) for hop, kind in GAINS),
        ("share of attempts that write a plan, T=1",
         ("policy", "blank", "T=1", "writes a plan"), _below(0.01)),
    )
)
# fmt: on


def measured(name: str) -> Any:
    """Every probe's values for one of `TOY_MODELS`."""
    return _read(name, "measured.json")


def training(name: str) -> Any:
    """How one of `TOY_MODELS` was trained."""
    return _read(name, "training.json")


def _read(name: str, file: str) -> Any:
    path = ASSETS / f"toy_lm_{name.rpartition('-')[2]}" / file
    return json.loads(path.read_text(encoding="utf-8"))


def shown(value: Value) -> str:
    """Mean and interval, as in `0.312 [0.284, 0.341]`; a dash where nothing was measured.

    The space inside the brackets does not break, so that a narrow column keeps them whole.
    """
    if not value[3]:
        return "–"
    mean, low, high = (f"{v:.3f}" if abs(v) < 10 else f"{v:.1f}" for v in value[:3])
    return f"{mean} [{low},\u00a0{high}]"


def _at(values: dict[str, Any], path: tuple[str, ...]) -> Value:
    for key in path:
        values = values[key]
    return values  # type: ignore[return-value]


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def preconditions_markdown(results: dict[str, dict[str, Any]]) -> str:
    """Each precondition, each model's value, and whether it is met."""
    rows = []
    for condition in PRECONDITIONS:
        cells = []
        for values in results.values():
            value = _at(values, condition.path)
            met = value[3] > 0 and condition.met(value[0], value[1], value[2])
            cells.append(f"{shown(value)} {'met' if met else '**not met**'}")
        rows.append((condition.text, condition.wanted, *cells))
    return table(("precondition", "wanted", *results), rows)


def hops_markdown(results: dict[str, dict[str, Any]]) -> str:
    """Exact match by hops: searching, and answering at once."""
    rows = []
    for model, values in results.items():
        for kind in ("blank", "knowing"):
            for how in ("T=1", "greedy"):
                found = values["policy"][kind][how]["exact match"]
                cells = (shown(found[hop]) for hop in HOPS)
                rows.append((f"{model}, {kind}, {how}", *cells))
            found = values["closed book"][kind]
            rows.append((f"{model}, {kind}, no search", *(shown(found[hop]) for hop in HOPS)))
        known = (shown(found[f"{hop}, all known"]) for hop in HOPS[1:])
        rows.append((f"{model}, knowing, no search, all facts of the chain known", "–", *known))
        found = values["closed book"]["knowing, for training"]
        cells = (shown(found[hop]) for hop in HOPS)
        rows.append((f"{model}, knowing worlds 200 to 202, no search", *cells))
    return table(("model, worlds", *HOPS), rows)


def hints_markdown(results: dict[str, dict[str, Any]]) -> str:
    """Exact match with each privileged block in the prompt, and the gains."""
    kinds = list(next(iter(results.values()))["hints"]["blank"]["T=1"])
    columns = [(m, how) for m in results for how in ("T=1", "greedy")]
    rows = [
        (kind, *(shown(results[m]["hints"]["blank"][how][kind]) for m, how in columns))
        for kind in kinds
    ]
    return table(("in the prompt", *(f"{m}, {how}" for m, how in columns)), rows)


def evidence_markdown(results: dict[str, dict[str, Any]]) -> str:
    """The gold answer's gain by what a search brought, and how well it detects that."""
    columns = ("found, gain", "not found, gain", "AUC of the gain", "AUC of the next thought")
    rows = [
        (f"{model}, {kind}, {case}", *(shown(found[column]) for column in columns))
        for model, values in results.items()
        for kind in ("blank", "knowing")
        for case, found in values["evidence"][kind].items()
    ]
    return table(("searches", *columns), rows)


def perplexity_markdown(results: dict[str, dict[str, Any]]) -> str:
    """Perplexity of passages the model has not met, and of the same with their words shuffled."""
    texts = next(iter(results.values()))["perplexity"]
    rows = [(text, *(shown(results[m]["perplexity"][text]) for m in results)) for text in texts]
    return table(("passages of a blank world", *results), rows)


def ceiling_markdown(results: dict[str, dict[str, Any]]) -> str:
    """Share of hops whose passage a query finds, by its words and the number of passages."""
    ceilings = next(iter(results.values()))["retrieval"]
    rows = [
        (query, *(shown(ceilings[topk][query]) for topk in ceilings))
        for query in next(iter(ceilings.values()))
    ]
    return table(("the query", *(f"first {topk}" for topk in ceilings)), rows)


def passages_markdown() -> str:
    """The passages of one development world that speak of one person, and what they state."""
    world = Wiki(WikiConfig(), 100)
    name = world.entities["person"][0]
    stated = {document: fact for fact, ids in world.gold_ids.items() for document in ids}
    rows = []
    for document in world.corpus:
        if name in document["contents"]:
            fact = stated.get(document["id"])
            said = f"{fact.noun} of {fact.subject}" if fact else "nothing that is ever asked"
            rows.append((f"`{document['id']}`", title_of(document), body_of(document), said))
    return table(("id", "title", "text", "states"), rows)


def questions_markdown() -> str:
    """One question of each number of hops, with its steps."""
    rows = []
    for question in Wiki(WikiConfig(), 100).questions(3):
        hops = question["metadata"]["hops"]
        steps = "; ".join(f"{hop['question']} *{hop['answer']}*" for hop in hops)
        rows.append((str(len(hops)), question["question"], steps))
    return table(("hops", "question", "its steps, with their answers"), rows)


def training_markdown() -> str:
    """How the shipped models were trained."""
    keys = {"tokens": "tokens read", "cpu_seconds": "CPU-seconds, one thread", "loss": "last loss"}
    made = {name: training(name) for name in TOY_MODELS}
    rows = [(text, *(f"{made[name][key]:,}" for name in made)) for key, text in keys.items()]
    size = (f"{measured(name)['parameters']:,}" for name in made)
    return table(("", *made), [("parameters", *size), *rows])


def page_blocks() -> dict[str, Callable[[], str]]:
    """What the page on the toy world shows, by name."""
    results = {name: measured(name) for name in TOY_MODELS}
    tables = {
        "preconditions": preconditions_markdown, "hops": hops_markdown, "hints": hints_markdown,
        "evidence": evidence_markdown, "ceiling": ceiling_markdown,
        "perplexity": perplexity_markdown,
    }  # fmt: skip
    return {
        "passages": passages_markdown,
        "questions": questions_markdown,
        "training": training_markdown,
        "samples": lambda: f"```{{raw}} html\n{samples_html(TOY_MODELS[0])}\n```",
        **{name: partial(make, results) for name, make in tables.items()},
    }


def attempt_html(text: str) -> str:
    """An attempt with each tagged piece in a colour and under a name of its own.

    Shape: the text after the prompt -> HTML whose pieces have the class `ms-piece ms-<tag>`.
    """
    parts = [
        f'<div class="ms-piece ms-{kind}"><b>{kind}</b> {html.escape(inner.strip())}</div>'
        for kind, inner in _PIECE.findall(text)
    ]
    return f'<div class="ms-attempt">{"".join(parts)}</div>'


def samples_html(name: str) -> str:
    """The sample attempts kept beside a model, as HTML."""
    rows = []
    for sample in _read(name, "samples.json"):
        verdict = "right" if sample["correct"] else f"wrong; right is {sample['golden_answer']}"
        rows.append(
            f"<p><b>{html.escape(sample['title'])}.</b> {html.escape(sample['question'])} "
            f"<i>({html.escape(verdict)})</i></p>{attempt_html(sample['text'])}"
        )
    return "\n".join(rows)


def smollm2_steps() -> str:
    """The three kept steps of SmolLM2: a table, what it cost, one attempt; as Markdown."""
    found = json.loads((ASSETS / "smollm2_grpo.json").read_text(encoding="utf-8"))
    head = (
        "step", "right", "F1", "well formed", "searches", "dead groups",
        "s generate", "s update", "tokens written",
    )  # fmt: skip
    rows = [
        (
            f"{row['step']}", f"{row['exact match']:.2f}", f"{row['reward']:.3f}",
            f"{row['well-formed']:.2f}", f"{row['searches']:.2f}", f"{row['dead groups']:.2f}",
            f"{row['seconds']['generate']:.0f}", f"{row['seconds']['update']:.0f}",
            f"{row['tokens']['written']:,}",
        )
        for row in found["steps"]
    ]  # fmt: skip
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ("---",) * 9, *rows))
    plain = next(iter(found["untrained"].values()))
    sample = found["samples"][-1]
    pieces = "".join(
        f'<div class="ms-piece ms-{s["kind"]}"><b>{s["kind"]}</b> {html.escape(s["text"])}</div>'
        for s in sample["segments"]
        if s["kind"] not in ("search", "prompt")
    )
    settings = found["settings"]
    return (
        f"{found['model']['name']}: {found['label']}\n\n{table}\n\n"
        f"Each step: {settings['questions a step']} questions ({found['data']['questions']}) with "
        f"{settings['attempts a question']} attempts each; reward: {settings['reward']}. "
        f"The prompt holds worked examples: without them {plain['opened a tag']} of "
        f"{plain['attempts']} attempts opened a tag at all. The largest change of a weight was "
        f"{found['moved']:.1e}; log-probabilities recorded while sampling and those of one pass "
        f"differ by {found['largest log-prob difference']:.0e} at most. "
        f"Made on {found['made']['date']} by `{found['made']['command']}`.\n\n"
        f"One attempt at *{sample['question']}* (reward {sample['reward']:.2f}):\n\n"
        f'<div class="ms-attempt">{pieces}</div>\n'
    )
