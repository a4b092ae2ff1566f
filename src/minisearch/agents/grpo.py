"""Group relative policy optimisation with a search engine in the loop.

One step, as `GRPO.training_step` does it::

    attempts = rollout(each question, `group` times)
    advantages = (reward - mean of the group) / (standard deviation of the group)
    for part in minibatches:
        ratio = exp(log_prob - log_prob when sampled)              # of every token
        loss = -min(ratio * A, clip(ratio, 1 - low, 1 + high) * A) + kl * k3
        average over the tokens that the model wrote; backward; clip; step

A method that adds to this gives the module one function that returns more advantage per token, or
one that returns a further loss; neither changes the loop.

Source: DeepSeekMath (arXiv 2402.03300); with search, Search-R1 (arXiv 2503.09516).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from minisearch.agents.objective import clipped_loss, group_advantages, group_statistics, k3
from minisearch.agents.protocol import Protocol, protocol_of
from minisearch.agents.rewards import Reward, exact_match_reward
from minisearch.agents.rollout import NotFiniteError, RolloutConfig, rollout
from minisearch.agents.scoring import log_prob_of, logits_before, passes, token_log_probs
from minisearch.agents.trajectory import Batch, Trajectory, collate
from minisearch.data.qa import Question
from minisearch.errors import InputError, one_of
from minisearch.lit import Module
from minisearch.models.lm import LanguageModel
from minisearch.retriever import Retriever
from minisearch.storage import build_dir

AVERAGES = ("token", "sequence")


@dataclass(frozen=True)
class GRPOConfig:
    """Everything between the attempts and the optimiser."""

    group: int = 8  # attempts a question
    minibatches: int = 2  # updates a step
    clip_low: float = 0.2  # the ratio may fall by this much
    clip_high: float = 0.2  # and rise by this much
    kl: float = 0.0  # weight of the divergence from the reference model
    average: str = "token"  # or "sequence": every attempt weighs the same, however long
    standardise: bool = True  # divide by the group's standard deviation
    mask_observations: bool = True  # False: the loss is also taken over passages, a known mistake
    gradient_norm: float = 1.0  # greatest norm of the gradient

    def __post_init__(self) -> None:
        if self.average not in AVERAGES:
            raise one_of("parameter average", self.average, list(AVERAGES))
        for name, least in (("group", 2), ("minibatches", 1)):
            if getattr(self, name) < least:
                found = str(getattr(self, name))
                raise InputError(f"parameter {name}", found, f"{least} or more", f"raise {name}.")
        if self.minibatches > self.group:
            found, expected = str(self.minibatches), f"at most {self.group}, the group's attempts"
            raise InputError("parameter minibatches", found, expected, "lower minibatches.")


@dataclass
class Step:
    """The attempts of one step, scored: what a further advantage or loss can use.

    Shape: N attempts, those of one question side by side; L tokens of the longest.
    """

    attempts: list[Trajectory]
    questions: list[Question]  # of each attempt
    rewards: Tensor  # (N,)
    batch: Batch
    mask: Tensor  # (N, L) bool, tokens that the loss is taken over
    advantages: Tensor  # (N, L), 0 outside the mask
    old: Tensor  # (N, L) log-probabilities when sampled
    reference: Tensor | None = None  # (N, L) log-probabilities of the reference model


@dataclass
class Part:
    """Some attempts of a step in one pass, with gradients.

    Shape: B attempts, cut to L' tokens; M of their tokens are in the mask.
    """

    rows: Tensor  # (B,) numbers of the attempts in the step
    mask: Tensor  # (B, L') bool
    logits: Tensor  # (M, V), row by row
    log_probs: Tensor  # (M,) of the tokens that were sampled
    weights: Tensor  # (M,) in the average; they sum to 1 over a minibatch's parts and processes

    def of(self, values: Tensor) -> Tensor:
        """Values of a step's tokens, at those of this part. Shape: (N, L) -> (M,)."""
        return values[self.rows, : self.mask.shape[1]][self.mask]


ExtraAdvantage = Callable[[Step], Tensor]  # -> (N, L), added to the step's advantages
# -> the part's share of a further loss, a scalar: as a rule (values * part.weights).sum()
ExtraLoss = Callable[[Step, Part], Tensor]


class GRPO(Module):
    """Trains a language model to search, question by question.

    `fit` with `Batches({"question": numbers}, batch_size=...)` decides which questions make a step;
    `history` then has a row a step: rollouts so far, reward, further measures, group statistics,
    entropy, and the seconds spent on "generate", "retrieve", "score" and "update".

    Args:
        lm: the policy, trained in place.
        retriever: the search engine.
        questions: what the numbers in the batches stand for.
        config, attempts: how to learn, and how far an attempt may go.
        reward: of one attempt.
        measures: further values of one attempt, logged by name.
        reference: the model to stay near where `config.kl` is not 0; the start, as a rule.
        extra_advantage, extra_loss: what a method adds.
        seed: of all sampling.

    Raises:
        InputError: where logits or gradients stop being numbers; the step is saved first.
    """

    def __init__(
        self,
        lm: LanguageModel,
        retriever: Retriever,
        questions: Sequence[Question],
        config: GRPOConfig,
        attempts: RolloutConfig,
        reward: Reward = exact_match_reward,
        measures: dict[str, Reward] | None = None,
        reference: Any = None,
        extra_advantage: ExtraAdvantage | None = None,
        extra_loss: ExtraLoss | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.lm, self.model, self.retriever = lm, lm.model, retriever
        self.questions, self.config, self.attempts = questions, config, attempts
        self.reward, self.measures = reward, measures or {}
        self.extra_advantage, self.extra_loss = extra_advantage, extra_loss
        self.protocol: Protocol = protocol_of(lm.tokenizer)
        self.seed, self.steps = seed, 0
        if (config.kl != 0) != (reference is not None):
            found = f"kl {config.kl:g} {'with' if reference is not None else 'without'} a reference"
            raise InputError("GRPO", found, "a reference if and only if kl is not 0", "add it.")
        self.reference = reference.eval().requires_grad_(False) if reference is not None else None

    def configure_optimizers(self) -> Any:
        updates, limit = self.total_steps * self.config.minibatches, self.trainer.max_steps
        self.total_steps = min(updates, limit) if limit >= 0 else updates
        found = super().configure_optimizers()
        for group in found[0][0].param_groups:
            group["betas"] = (0.9, 0.95)
        return found

    def training_step(self, batch: dict[str, Tensor], _: int) -> Any:
        numbers = [n for n in batch["question"].tolist() for _ in range(self.config.group)]
        seconds = defaultdict(float, generate=0.0, retrieve=0.0)  # in every row of the history
        first = self.trainer.global_step
        try:
            attempts = self._roll_out(numbers, seconds)
            began = time.perf_counter()
            step = self._score(attempts, [self.questions[n] for n in numbers])
            seconds["score"] = time.perf_counter() - began
            values = self._update(step)
        except NotFiniteError as error:
            raise self._failed(numbers, error) from error
        seconds["update"] = time.perf_counter() - began - seconds["score"]
        self.steps += 1
        values |= self._described(step) | {f"seconds {n}": float(s) for n, s in seconds.items()}
        means = {
            n: float(self._mean(torch.tensor(v, device=self.device))) for n, v in values.items()
        }
        rollouts = self.steps * len(attempts) * self.trainer.world_size
        self._record({"step": first, "rollouts": rollouts, **means})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["grpo_steps"] = self.steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.steps = checkpoint["grpo_steps"]

    # -- the three parts of a step -----------------------------------------------------------------

    def _roll_out(self, numbers: list[int], seconds: defaultdict[str, float]) -> list[Trajectory]:
        prompts = [
            self.protocol.prompt(self.lm.tokenizer, self.questions[n]["question"]) for n in numbers
        ]
        group = self.config.group
        seeds = [(self.seed, self.steps, n, place % group) for place, n in enumerate(numbers)]
        return rollout(
            self.lm, self.retriever, self.protocol, prompts, self.attempts, seeds, seconds
        )

    def _score(self, attempts: list[Trajectory], questions: list[Question]) -> Step:
        pairs = list(zip(attempts, questions, strict=True))
        rewards = torch.tensor([float(self.reward(a, q)) for a, q in pairs], device=self.device)
        batch = collate(attempts, self.lm.pad_id).to(self.device)
        mask = batch.policy if self.config.mask_observations else batch.policy | batch.observation
        grouped = group_advantages(rewards.view(-1, self.config.group), self.config.standardise)
        step = Step(
            attempts, questions, rewards, batch, mask,
            advantages=grouped.view(-1, 1) * mask,
            old=batch.log_probs,
        )  # fmt: skip
        if not self.config.mask_observations:  # of passages no log-probabilities were sampled
            step.old = step.old + token_log_probs(self.model.eval(), batch, batch.observation)
        if self.reference is not None:
            step.reference = token_log_probs(self.reference.eval(), batch, mask)
        if self.extra_advantage is not None:
            step.advantages = step.advantages + self.extra_advantage(step) * mask
        return step

    def _update(self, step: Step) -> dict[str, float]:
        place = torch.arange(len(step.attempts)) % self.config.group
        self.train()
        optimiser: Any = self.optimizers()
        schedule: Any = self.lr_schedulers()
        sums, norms = torch.zeros(4, device=self.device), []
        for number in range(self.config.minibatches):  # some attempts of every group in each
            rows = (place % self.config.minibatches == number).nonzero()[:, 0]
            optimiser.zero_grad(set_to_none=False)
            sums += _summed(self._backward(step, rows))
            norms.append(self._gradient_norm())
            if not np.isfinite([sums[0].item(), norms[-1]]).all():  # on all processes alike
                raise NotFiniteError(step.attempts)
            optimiser.step()
            schedule.step()
        loss, tokens, clipped, kl = sums.tolist()
        return {
            "loss": loss / self.config.minibatches,
            "clipped": clipped / max(tokens, 1),
            "kl to old": kl / max(tokens, 1),
            "gradient norm": float(np.mean(norms)),
        }

    def _backward(self, step: Step, rows: Tensor) -> Tensor:
        """Gradients of a minibatch on this process, summed over passes.

        Attempts without any advantage have no gradient and are left out; they still count in the
        average.

        Shape: rows (B,) -> (4,), sums of the loss, tokens, clipped tokens, divergence from `old`.
        """
        config, sums = self.config, torch.zeros(4, device=self.device)
        weights = torch.zeros_like(step.old)
        weights[rows] = self._weights(step.mask[rows])
        needed = bool(config.kl) or self.extra_loss is not None
        rows = rows.to(self.device)[(step.advantages[rows] != 0).any(1) | needed]
        for part_rows in passes(step.batch.real[rows].sum(1)):
            chosen = rows[part_rows]
            batch = step.batch.select(chosen)
            mask = step.mask[chosen, : batch.ids.shape[1]]
            logits = logits_before(self.model, batch.ids, mask)
            log_probs = log_prob_of(logits, batch.ids[mask])
            part = Part(chosen, mask, logits, log_probs, weights[chosen, : mask.shape[1]][mask])
            values, clipped = clipped_loss(
                log_probs, part.of(step.old), part.of(step.advantages),
                config.clip_low, config.clip_high,
            )  # fmt: skip
            if step.reference is not None:
                values = values + config.kl * k3(log_probs, part.of(step.reference))
            loss = (values * part.weights).sum()
            if self.extra_loss is not None:
                loss = loss + self.extra_loss(step, part)
            loss.backward()
            moved = k3(log_probs, part.of(step.old)).sum()
            sums += torch.stack([loss, mask.sum(), clipped.sum(), moved]).detach()
        return sums

    def _weights(self, mask: Tensor) -> Tensor:
        """The weight of each token in the mean over all processes. Shape: (B, L) -> (B, L)."""
        counts = mask.sum(1, keepdim=True).float()
        if self.config.average == "token":
            return mask / _summed(counts.sum()).clamp(min=1)
        return mask / (_summed(torch.ones_like(counts).sum()) * counts.clamp(min=1))

    def _gradient_norm(self) -> float:
        """Add up the gradients of all processes and limit their norm; what it was."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if dist.is_available() and dist.is_initialized():
            flat = _summed(torch.cat([p.grad.flatten() for p in trained]))
            sizes = [p.numel() for p in trained]
            for parameter, gradient in zip(trained, flat.split(sizes), strict=True):
                parameter.grad.copy_(gradient.view_as(parameter))
        return float(torch.nn.utils.clip_grad_norm_(trained, self.config.gradient_norm))

    # -- what is logged and saved ------------------------------------------------------------------

    def _described(self, step: Step) -> dict[str, float]:
        rewards = step.rewards.view(-1, self.config.group)
        policy = step.batch.policy
        pairs = list(zip(step.attempts, step.questions, strict=True))
        measured = {
            n: float(np.mean([f(a, q) for a, q in pairs])) for n, f in self.measures.items()
        }
        return {
            "reward": float(rewards.mean()),
            **measured,
            **group_statistics(rewards),
            "searches": float(np.mean([len(a.queries) for a in step.attempts])),
            "entropy": -float(step.batch.log_probs[policy].mean()),  # an estimate, at temperature 1
            "written tokens": float(policy.sum(1).float().mean()),
        }

    def _failed(self, numbers: list[int], error: NotFiniteError) -> InputError:
        """Save the step that failed; the error to raise."""
        folder = build_dir() / "failed"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{self.steps}-process-{self.global_rank}.pt"
        saved = {
            "step": self.steps,
            "questions": numbers,
            "attempts": [row.ids for row in error.rows],
            "weights": self.model.state_dict(),
        }
        torch.save(saved, path)
        remedy = "lower the learning rate or the clip, and start again from a checkpoint."
        found = f"{error}; weights and attempts are in {path}"
        return InputError(f"training step {self.steps}", found, "finite numbers", remedy)


def _summed(values: Tensor) -> Tensor:
    """The sum over all processes; on one, the values themselves."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values
