"""The agent code beside what one would use without it: TRL's GRPO, and a loop around `generate`.

Both sides of a pair are measured in turns, in one process, with the same model, prompts and number
of tokens. The least CPU time of a few tries counts: other programs can only add to it.
"""

from __future__ import annotations

import re
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import numpy as np
import torch
from torch import nn
from transformers import (
    PrinterCallback,
    StoppingCriteria,
    StoppingCriteriaList,
    TrainerCallback,
)

from minisearch.agents.grpo import GRPO, GRPOConfig
from minisearch.agents.protocol import TOY, Piece
from minisearch.agents.rollout import RolloutConfig, rollout
from minisearch.agents.trajectory import Trajectory
from minisearch.data.qa import Question
from minisearch.lit import Batches, Optimisation, fit
from minisearch.models.lm import LanguageModel, load_lm
from minisearch.profiles import Settings
from minisearch.retriever import BM25Retriever
from minisearch.worlds.wiki import Wiki, WikiConfig

QUESTIONS, GROUP = 8, 8  # of one step
GREEDY = RolloutConfig(temperature=0.0)
CLOSING = ("</search>", "</answer>")
LEARNING_RATE = 3e-4
TokenReward = Callable[[Sequence[int]], float]


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds of CPU and by the wall, and the result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}, result


def least(times: Sequence[dict[str, float]]) -> dict[str, float]:
    """The run that took the least CPU time."""
    return min(times, key=lambda one: one["cpu"])


def world(count: int, seed: int = 101) -> tuple[list[Question], BM25Retriever]:
    """Questions of a world and its search engine."""
    wiki = Wiki(WikiConfig(), seed)
    return wiki.questions(count), BM25Retriever(wiki.corpus)


def prompts_of(lm: LanguageModel, questions: Sequence[Question]) -> list[str]:
    """The prompts that GRPO makes of questions."""
    return [TOY.prompt(lm.tokenizer, question["question"]) for question in questions]


# -- whole GRPO steps, one turn, beside TRL --------------------------------------------------------


def tireless_lm() -> LanguageModel:
    """A toy model that cannot end a turn, so that every completion has all its tokens.

    The output layer's bias forbids it, which costs whoever samples from the model the same.
    """
    lm = load_lm("toy-0")
    head = lm.model.get_output_embeddings()
    bias = torch.zeros(head.out_features)
    bias[[*lm.end_ids, *lm.tokenizer.convert_tokens_to_ids(list(CLOSING))]] = -1e4
    head.bias = nn.Parameter(bias, requires_grad=False)
    return lm


def variety(ids: Sequence[int]) -> float:
    """Share of different tokens: no two attempts have quite the same, so that no group is dead."""
    return len(set(ids)) / len(ids)


def one_in_twelve(ids: Sequence[int]) -> float:
    """1 for one attempt in twelve, by its checksum: about half of the groups of 8 are dead."""
    return float(zlib.crc32(bytes(str(ids), "ascii")) % 12 == 0)


class Clock:
    """Notes when each optimiser step of TRL, or each GRPO step of ours, is over."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def mark(self, *_: Any, **__: Any) -> None:
        self.marks.append((time.process_time(), time.perf_counter()))

    def steps(self, stride: int = 1) -> list[dict[str, float]]:
        """Seconds of each step but the first, which warms up."""
        pairs = np.diff(np.array(self.marks)[::stride], axis=0)[1:].tolist()
        return [{"cpu": cpu, "wall": wall} for cpu, wall in pairs]


class OurClock(Clock, lightning.Callback):
    on_train_start = on_train_batch_end = Clock.mark


class TheirClock(Clock, TrainerCallback):
    on_train_begin = on_step_end = Clock.mark


Steps = tuple[list[dict[str, float]], int, float]  # seconds of each; tokens written; dead groups


def our_steps(steps: int, length: int, updates: int, reward: TokenReward) -> Steps:
    """Steps of this package's GRPO."""
    lm, clock, lengths = tireless_lm(), OurClock(), []
    questions, retriever = world(QUESTIONS * steps)

    def rewarded(attempt: Trajectory, _: Question) -> float:
        ids = attempt.ids[attempt.prompt_length :]
        lengths.append(len(ids))
        return reward(ids)

    module = GRPO(
        lm, retriever, questions, GRPOConfig(group=GROUP, minibatches=updates),
        RolloutConfig(searches=0, turn_tokens=length), reward=rewarded,
    )  # fmt: skip
    batches = Batches({"question": torch.arange(len(questions))}, QUESTIONS, seed=0)
    optimisation = Optimisation(LEARNING_RATE, schedule="constant", clip=None)
    fit(module, batches, Settings.of("toy"), optimisation, callbacks=[clock])
    assert module.trainer.global_step == steps * updates
    return clock.steps(), sum(lengths), float(module.history.column("dead groups")[1].mean())


def trl_arguments(steps: int, length: int, updates: int) -> dict[str, Any]:
    """TRL's settings for the same steps: all that costs time without need is off."""
    return {
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True,
        "per_device_train_batch_size": QUESTIONS * GROUP // updates, "num_generations": GROUP,
        "gradient_accumulation_steps": 1, "steps_per_generation": updates,  # one batch to generate
        "max_completion_length": length, "temperature": 1.0, "beta": 0.0, "loss_type": "dapo",
        "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "weight_decay": 0.0,
        "adam_beta2": 0.95, "max_grad_norm": 1.0, "optim": "adamw_torch_fused",
        "max_steps": steps * updates, "shuffle_dataset": False, "dataloader_num_workers": 0,
        "dataloader_pin_memory": False, "logging_strategy": "no", "save_strategy": "no",
        "report_to": "none",
    }  # fmt: skip


def trl_steps(steps: int, length: int, updates: int, reward: TokenReward, **changes: Any) -> Steps:
    """The same steps by TRL: same weights, prompts in the same order, same reward."""
    import trl
    from datasets import Dataset

    lm, clock = tireless_lm(), TheirClock()
    written: list[float] = []
    questions, _ = world(QUESTIONS * steps)
    batches = Batches({"question": torch.arange(len(questions))}, QUESTIONS, seed=0)
    order = torch.cat([batch["question"] for batch in batches]).tolist()
    prompts = prompts_of(lm, [questions[n] for n in order])
    rewards: list[float] = []

    def rewarded(completion_ids: list[list[int]], **_: Any) -> list[float]:
        written.extend(map(len, completion_ids))
        rewards.extend(map(reward, completion_ids))
        return rewards[-len(completion_ids) :]

    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.GRPOTrainer(
            model=lm.model,
            reward_funcs=rewarded,
            args=trl.GRPOConfig(folder, **(trl_arguments(steps, length, updates) | changes)),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=lm.tokenizer,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    assert trainer.state.global_step == steps * updates
    groups = np.array(rewards).reshape(-1, GROUP)
    dead = (groups == groups[:, :1]).all(1).mean()
    return clock.steps(updates), int(sum(written)), float(dead)


def beside_trl(
    name: str, reward: TokenReward, length: int = 64, updates: int = 2, steps: int = 4,
    tries: int = 2, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """Seconds a step of both, and how many times as long TRL takes.

    Raises: AssertionError where one side wrote another number of tokens.
    """
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for _ in range(tries):
        found, tokens, dead = our_steps(steps, length, updates, reward)
        ours += found
        found, their_tokens, _ = trl_steps(steps, length, updates, reward, **changes)
        theirs += found
        assert tokens == their_tokens == steps * QUESTIONS * GROUP * length
    return {
        "variant": name, "tokens": length, "updates": updates, "dead groups": dead,
        **compared(ours, theirs, "TRL"), "products": step_products(length),
    }  # fmt: skip


def compared(ours: list[dict[str, float]], other: list[dict[str, float]], name: str) -> dict:
    """Least seconds of both sides, and their ratios."""
    a, b = least(ours), least(other)
    found = {f"ours {kind}": a[kind] for kind in a} | {f"{name} {kind}": b[kind] for kind in b}
    return {**found, "times cpu": b["cpu"] / a["cpu"], "times wall": b["wall"] / a["wall"]}


def step_products(length: int) -> float:
    """CPU seconds of nothing but a step's matrix products, which no code in 32 bits can do without.

    The prompts are left out, and so is attention.
    """
    model = load_lm("toy-0").model
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Linear)]
    rows = QUESTIONS * GROUP

    def forward(tokens: int) -> None:
        for weight in weights:
            torch.mm(inputs[tokens, weight.shape[1]], weight.T)

    def both(tokens: int) -> None:
        forward(tokens)
        for weight in weights:
            gradient, values = inputs[tokens, weight.shape[0]], inputs[tokens, weight.shape[1]]
            torch.mm(gradient, weight)
            torch.mm(gradient.T, values)

    sides = {side for weight in weights for side in weight.shape}
    inputs = {(n, side): torch.randn(n, side) for n in (rows, 1024) for side in sides}
    with torch.inference_mode():
        written = least([timed(lambda: forward(rows))[0] for _ in range(20)])["cpu"]
        learnt = least([timed(lambda: both(1024))[0] for _ in range(5)])["cpu"]
    return length * written + rows * length / 1024 * learnt


# -- attempts with searches, beside a plain loop ---------------------------------------------------


class Closed(StoppingCriteria):
    """A row is done with a closing tag, which the toy tokenizer has as one token."""

    def __init__(self, tokenizer: Any) -> None:
        self.ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(CLOSING)))

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.isin(input_ids[:, -1], self.ids)


def plain_attempts(
    lm: LanguageModel, retriever: Any, prompts: Sequence[str], config: RolloutConfig
) -> list[list[int]]:
    """The loop that one would write: `generate` for each turn, all that was said read again."""
    rows = [lm.encode(prompt) for prompt in prompts]
    starts = [len(row) for row in rows]
    live = list(range(len(rows)))
    for turn in range(config.searches + 1):
        if not live:
            break
        _generate(lm, rows, live, config)
        said = lm.tokenizer.batch_decode([rows[n][starts[n] :] for n in live])
        found = [re.search(r"<search>((?:(?!<search>).)+)</search>$", text, re.S) for text in said]
        asked = {n: match[1].strip() for n, match in zip(live, found, strict=True) if match}
        live = [n for n in asked if asked[n]]
        if turn == config.searches:
            for n in live:
                rows[n] += lm.encode("<answer>")
            _generate(lm, rows, live, config)
        elif live:
            hits = retriever.batch_search([asked[n] for n in live], config.topk)
            for n, passages in zip(live, hits, strict=True):
                text = TOY.render([hit["document"] for hit in passages])
                rows[n] += lm.encode(str(Piece("information", text)))
    return rows


@torch.inference_mode()
def _generate(
    lm: LanguageModel, rows: list[list[int]], live: list[int], config: RolloutConfig
) -> None:
    """One turn of some rows, appended to them."""
    if not live:
        return
    texts = {"input_ids": [rows[n] for n in live]}
    inputs = lm.tokenizer.pad(texts, padding_side="left", return_tensors="pt")
    output = lm.model.generate(
        **inputs, max_new_tokens=config.turn_tokens, do_sample=False,
        stopping_criteria=StoppingCriteriaList([Closed(lm.tokenizer)]),
    )  # fmt: skip
    for n, new in zip(live, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
        rows[n] += [token for token in new if token != lm.pad_id]


def same_up_to_ties(lm: LanguageModel, first: list[int], second: list[int]) -> bool:
    """Whether rows are equal up to a token for which the model had no preference."""
    places = [n for n, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]]
    if not places:
        return len(first) == len(second)
    n = places[0]
    with torch.inference_mode():
        logits = lm.model(input_ids=torch.tensor([first[:n]])).logits[0, -1]
    return bool((logits[first[n]] - logits[second[n]]).abs() < 1e-3)


def beside_plain_loop(
    count: int = 128, tries: int = 4, config: RolloutConfig = GREEDY
) -> dict[str, Any]:
    """Greedy attempts at questions of world 101 by both; they are the same, ties aside.

    Raises: AssertionError where they are not.
    """
    lm = load_lm("toy-0")
    questions, retriever = world(count)
    prompts = prompts_of(lm, questions)
    read = [0, 0]
    batches = [prompts[n : n + config.batch_size] for n in range(0, count, config.batch_size)]

    def plain() -> list[list[int]]:
        return [row for part in batches for row in plain_attempts(lm, retriever, part, config)]

    def noted(_: Any, args: Any, named: dict[str, Any]) -> None:
        read[side] += named["input_ids"].numel()

    ours, theirs = [], []
    hook = lm.model.register_forward_pre_hook(noted, with_kwargs=True)
    for _ in range(tries):
        side = 0
        seconds, attempts = timed(lambda: rollout(lm, retriever, TOY, prompts, config))
        ours.append(seconds)
        side = 1
        seconds, rows = timed(plain)
        theirs.append(seconds)
        hook.remove()
        pairs = zip(attempts, rows, strict=True)
        assert all(same_up_to_ties(lm, attempt.ids, row) for attempt, row in pairs)
    written = sum(len(s.ids) for a in attempts for s in a.segments if s.sampled)
    return {
        "passages a search": config.topk, "attempts": count, "written tokens": written,
        "searches": sum(len(a.queries) for a in attempts), **compared(ours, theirs, "plain"),
        "ours read": read[0], "plain read": read[1],
    }  # fmt: skip
