"""Measure what the shipped toy language models can do, and write their model cards.

    python data_scripts/measure_toy_lm.py 0       # about ten minutes of one CPU core
    python data_scripts/measure_toy_lm.py 1

Beside the weights it leaves `measured.json`, `samples.json` and the card, `README.md`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import typer

from minisearch.agents import report
from minisearch.agents.demonstrator import UNKNOWN
from minisearch.agents.evidence import evidence
from minisearch.agents.probes import (
    Exam,
    Score,
    closed_book,
    document_texts,
    hints,
    perplexity,
    policy,
    retrieval_ceiling,
)
from minisearch.agents.rollout import RolloutConfig
from minisearch.models.lm import ASSETS, TOY_MODELS, LanguageModel, load_lm
from minisearch.profiles import use_threads
from minisearch.storage import atomic_write
from minisearch.worlds.wiki import KINDS, Wiki

CARD = """# {name}: a toy language model that searches

A Qwen2 of {parameters} parameters with one token a word, pre-trained from nothing (init_seed
{init_seed}) on an invented encyclopedia. It copies, reads passages, uses hints and remembers the
facts it was told. It knows no English beyond the few hundred words of that encyclopedia and is of
use for nothing else.

Made by `python data_scripts/pretrain_toy_lm.py {init_seed}`, measured by
`python data_scripts/measure_toy_lm.py {init_seed}`. Licence: MIT, as the code. Weights in half
precision, SHA-256 {sha256}.

Load it with `minisearch.models.lm.load_lm("{name}")`, or with `Qwen2ForCausalLM` and
`PreTrainedTokenizerFast`. `AutoTokenizer` would take Qwen2's own tokenizer, whose ids are others.

## Training

{tokens} tokens in {minutes} CPU-minutes on one thread; mean loss of the last 250 steps {loss}.

{recipe}

Rows: trajectories of a demonstrator of mixed quality, plain or with sibling attempts, a reference
attempt or a plan in the prompt; beliefs (the answer after partial evidence); lookups; passages; and
for knowing worlds half of the facts, as passages and as direct questions. No row teaches it to
write a plan.

## Preconditions

{count} questions on worlds 0, 1 and 2 of either kind, equally many of 1, 2 and 3 hops. No blank
world was met in training; of these knowing worlds it has read half of the facts, one by one, and
no trajectory. (Of those for reinforcement learning, 200 to 202, it was also asked chains of known
facts, and was told some final answers after partial evidence.) Two passages a search. In brackets:
95 % intervals by a bootstrap over questions; they hold for these worlds and this model.

{preconditions}

## Exact match by hops

{hops}

## Help in the prompt

Blank worlds, on questions that one of four siblings got right. *The same, called wrong* has the
queries and not the verdict; the reference holds the answer itself.

{hints}

## Evidence

The gain of a search is the mean log-probability of the gold answer's tokens after its passages,
less that after passages of other questions' searches in the same world. At the last hop, to find
the passage is nearly to have the answer's name in sight. In a blank world a bridge says nothing
about the answer, and no reader's gain could see it.

{evidence}

## Passages

Perplexity a word, each passage read by itself.

{perplexity}

## The search engine

Share of hops whose passage BM25 finds.

{ceiling}
"""

EVALUATION = (0, 1, 2)  # worlds of either kind
TRAINING = (200, 201, 202)  # knowing worlds for reinforcement learning
SAMPLED_FROM = (100,)


def measure_model(lm: LanguageModel, count: int) -> dict[str, Any]:
    """Every probe on the evaluation worlds of both kinds."""
    configs = {"T=1": RolloutConfig(), "greedy": RolloutConfig(temperature=0.0)}
    names = ("policy", "closed book", "hints", "evidence")
    found: dict[str, Any] = {name: {} for name in names}
    for kind in KINDS:
        exam = Exam(lm, kind, EVALUATION, count)
        found["policy"][kind] = {how: policy(exam, c) for how, c in configs.items()}
        found["closed book"][kind] = closed_book(exam, configs["greedy"])
        found["evidence"][kind] = evidence(exam, configs["T=1"])
        typer.echo(f"{kind} worlds: done after {time.process_time():.0f} CPU-s")
    exam = Exam(lm, "knowing", TRAINING, count)
    found["closed book"]["knowing, for training"] = closed_book(exam, configs["greedy"])
    exam = Exam(lm, "blank", EVALUATION, count)
    found["hints"]["blank"] = hints(exam, configs)
    found["retrieval"] = {str(topk): retrieval_ceiling(exam, topk) for topk in (1, 2, 3)}
    found["perplexity"] = perplexities(lm, exam.worlds[0])
    return found


def perplexities(lm: LanguageModel, world: Wiki) -> dict[str, Score]:
    """Of a blank world's passages, and of the same with their words shuffled."""
    names = {"in order": False, "shuffled": True}
    return {name: perplexity(lm, document_texts(world, mixed)) for name, mixed in names.items()}


def samples(lm: LanguageModel) -> list[dict[str, Any]]:
    """The first attempt of each sort, on a development world: none is picked by hand."""
    exam = Exam(lm, "blank", SAMPLED_FROM, 150)
    done = exam.attempts(RolloutConfig(), seed=5)
    right = exam.correct(done) > 0
    sorts: dict[str, Callable[[int], bool]] = {
        "Two hops in two searches, right": lambda n: right[n] and exam.hops[n] == 2
        and len(done[n].queries) == 2,
        "A search that missed, right in the end": lambda n: right[n] and "missing" in done[n].text,
        "Gives up": lambda n: not right[n] and UNKNOWN in done[n].answer,
        "Three hops, wrong": lambda n: not right[n] and exam.hops[n] == 3
        and len(done[n].queries) > 2,
    }  # fmt: skip
    rows = []
    for title, fits in sorts.items():
        n = next((n for n in range(len(done)) if fits(n)), None)
        if n is not None:
            question = exam.questions[n]
            rows.append(
                {
                    "title": title, "question": question["question"], "text": done[n].text,
                    "golden_answer": question["golden_answers"][0], "correct": bool(right[n]),
                }
            )  # fmt: skip
    return rows


def plain(value: Any) -> Any:
    """Scores as [mean, low, high, count], rounded, for JSON."""
    if isinstance(value, Score):
        numbers = (value.mean, value.low, value.high)
        return [None if np.isnan(v) else round(v, 4) for v in numbers] + [value.count]
    return {str(key): plain(inner) for key, inner in value.items()}


def card(init_seed: int) -> str:
    """The model card, from what was measured and how the model was trained."""
    name = TOY_MODELS[init_seed]
    results, made = {name: report.measured(name)}, report.training(name)
    recipe = "\n".join(f"* {key}: {value}" for key, value in made["recipe"].items())
    return CARD.format(
        name=name, init_seed=init_seed, recipe=recipe, count=results[name]["questions"],
        tokens=f"{made['tokens']:,}", minutes=f"{made['cpu_seconds'] / 60:.0f}",
        sha256=made["sha256"], loss=made["loss"],
        parameters=f"{results[name]['parameters']:,}",
        preconditions=report.preconditions_markdown(results),
        hops=report.hops_markdown(results), hints=report.hints_markdown(results),
        evidence=report.evidence_markdown(results),
        perplexity=report.perplexity_markdown(results),
        ceiling=report.ceiling_markdown(results),
    )  # fmt: skip


def measure(
    init_seed: Annotated[int, typer.Argument(help="0 or 1, the two shipped models.")],
    count: Annotated[int, typer.Option(help="Questions of each kind of world.")] = 1000,
) -> None:
    """Measure one shipped model and write its card."""
    use_threads(1)
    name, folder = TOY_MODELS[init_seed], ASSETS / f"toy_lm_{init_seed}"
    lm = load_lm(name)
    found = {
        "questions": count,
        "parameters": lm.model.num_parameters(),
        **plain(measure_model(lm, count)),
    }
    atomic_write(folder / "measured.json", json.dumps(found, indent=1) + "\n")
    atomic_write(folder / "samples.json", json.dumps(samples(lm), indent=1) + "\n")
    atomic_write(folder / "README.md", card(init_seed))


if __name__ == "__main__":
    typer.run(measure)
