"""GRPO against a plain restatement; where gradients go; resume, failures, and that it learns."""

from __future__ import annotations

import copy
import time
from functools import partial

import lightning
import numpy as np
import pytest
import torch
from grpo_example import QUESTIONS, Shelf, same_weights, searching_lm, train, uneven
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, get_peft_model
from toy_lm_example import toy_tokenizer

from minisearch.agents import grpo
from minisearch.agents.grpo import GRPO, GRPOConfig
from minisearch.agents.rewards import exact_match_reward, searches
from minisearch.agents.rollout import RolloutConfig
from minisearch.agents.scoring import passes, response_logits, token_log_probs
from minisearch.agents.trajectory import collate
from minisearch.errors import InputError
from minisearch.models.lm import LanguageModel

LIMITLESS = 1e9  # a gradient norm that is never reached


class Spy(lightning.Callback):
    """Keeps what every update of the optimiser saw: weights, gradients, learning rate."""

    def __init__(self):
        self.models, self.gradients, self.rates = [], [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        trained = [p for p in module.model.parameters() if p.requires_grad]
        self.gradients.append([p.grad.clone() for p in trained])
        self.models.append(copy.deepcopy(module.model))
        self.rates.append(optimizer.param_groups[0]["lr"])


class Watch:
    """A further advantage that is 0, and keeps the steps that it is shown."""

    def __init__(self):
        self.steps = []

    def __call__(self, step):
        self.steps.append(step)
        return torch.zeros_like(step.advantages)

    def no_loss(self, step, part):
        """For use as a further loss instead."""
        self.steps.append(step)
        return part.log_probs.sum() * 0


def spied(**arguments):
    """A trained module, what its updates saw, and its steps."""
    spy, watch = Spy(), Watch()
    trainer = {"callbacks": [spy, *arguments.pop("callbacks", [])]}
    module = train(**{"extra_advantage": watch, "trainer": trainer, **arguments})
    return module, spy, watch.steps


@pytest.fixture
def small_passes(monkeypatch):
    """Passes of so few tokens that each minibatch takes several."""
    monkeypatch.setattr(grpo, "passes", partial(passes, tokens=80))


def gradients_of(loss, model):
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


def assert_all_close(found, expected, scale=1e-4):
    """Equal, rounding aside, which is judged by the greatest entry of all."""
    most = max(e.abs().max().item() for e in expected)
    assert most > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=scale * most)


# -- one update --------------------------------------------------------------------------------


def plain_loss(model, start, reference, step, config, number):
    """The loss of a minibatch: attempt by attempt, token by token, nothing left out."""
    losses, group = [], config.group
    for n, attempt in enumerate(step.attempts):
        rewards = step.rewards[n // group * group : (n // group + 1) * group].tolist()
        advantage = (step.rewards[n] - np.mean(rewards)) / (np.std(rewards, ddof=1) + 1e-6)
        if n % group % config.minibatches != number:
            continue
        ids = torch.tensor([attempt.ids])
        scores, before, far = (
            None if m is None else m(input_ids=ids).logits[0].log_softmax(-1)
            for m in (model, start, reference)
        )
        place, tokens = 0, []
        for segment in attempt.segments:
            for k, token in enumerate(segment.ids):
                old = segment.log_probs[k] if segment.sampled else None
                if old is None and segment.kind != "prompt" and not config.mask_observations:
                    old = before[place - 1, token].item()
                if old is not None:
                    ratio = (scores[place - 1, token] - old).exp()
                    held = ratio.clip(1 - config.clip_low, 1 + config.clip_high)
                    tokens.append(-torch.min(ratio * advantage, held * advantage))
                    if config.kl:
                        d = far[place - 1, token].item() - scores[place - 1, token]
                        tokens[-1] = tokens[-1] + config.kl * (d.exp() - d - 1)
                place += 1
        losses.append(torch.stack(tokens))
    if config.average == "sequence":
        return torch.stack([loss.mean() for loss in losses]).mean()
    return torch.cat(losses).mean()


@pytest.mark.parametrize(
    "changes",
    [
        {"minibatches": 1},
        {"minibatches": 2},
        {"minibatches": 2, "average": "sequence"},
        {"minibatches": 3, "kl": 0.3},
        {"minibatches": 1, "kl": 0.3, "average": "sequence"},
        {"minibatches": 2, "mask_observations": False},
        {"minibatches": 2, "mask_observations": False, "kl": 0.3, "average": "sequence"},
        {"minibatches": 2, "clip_low": 0.05, "clip_high": 0.4},
    ],
)
def test_an_update_is_that_of_the_plain_restatement(changes, small_passes):
    """With a dead group, whose attempts the module leaves out and the restatement does not."""
    config = GRPOConfig(group=4, gradient_norm=LIMITLESS, **changes)
    lm, reference = searching_lm(), None
    if config.kl:
        reference = copy.deepcopy(lm.model)
        reference.lm_head.weight.data *= 0.9
    module, spy, (step,) = spied(
        lm=lm, config=config, reference=reference, steps=1, questions=[0, 1]
    )
    assert sum(step.rewards.view(-1, 4).std(1) == 0) == 1
    assert any(attempt.queries for attempt in step.attempts)
    start, losses = searching_lm().model, []
    for number, (model, found) in enumerate(zip(spy.models, spy.gradients, strict=True)):
        loss = plain_loss(model, start, reference, step, config, number)
        assert_all_close(found, gradients_of(loss, model))
        losses.append(loss.item())
    assert len(losses) == config.minibatches
    row = module.history.rows[0]
    assert row["loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    if config.minibatches > 1:
        assert row["clipped"] > 0
    norms = [torch.cat([g.flatten() for g in found]).norm() for found in spy.gradients]
    assert row["gradient norm"] == pytest.approx(np.mean(norms), rel=1e-3)


def test_attempts_without_advantage_are_not_read_again(small_passes):
    def rows_read(**changes):
        lm, read = searching_lm(), []
        decoder = lm.model.get_decoder()
        decoder.register_forward_hook(
            lambda module, _, output: read.append(len(output[0])) if module.training else None
        )
        config = GRPOConfig(group=4, minibatches=1, **changes)
        reference = searching_lm().model if config.kl else None
        train(lm, config, steps=1, questions=[0, 1], reference=reference)
        return sum(read)

    assert rows_read() == 4  # the group of question 0 is dead
    assert rows_read(kl=0.1) == 8


def test_a_step_of_dead_groups_changes_nothing():
    module = train(steps=1, reward=lambda *_: 0.5)
    assert same_weights(module, train(steps=0))
    row = module.history.rows[0]
    values = [row[n] for n in ("loss", "clipped", "kl to old", "gradient norm", "dead groups")]
    assert values == [0, 0, 0, 0, 1]


def test_gradients_are_limited_to_their_norm():
    config = GRPOConfig(group=4, minibatches=1, gradient_norm=0.01)
    module, spy, _ = spied(config=config, steps=1)
    assert torch.cat([g.flatten() for g in spy.gradients[0]]).norm() == pytest.approx(0.01, 1e-3)
    assert module.history.rows[0]["gradient norm"] > 0.1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_ratio_is_one_before_the_first_update_and_then_no_longer(temperature, small_passes):
    """What sampling recorded token by token is what a pass over whole attempts finds."""
    first, later, advantages = [], [], []

    def watch(step, part):
        changes = first if part.rows[0] % 2 == 0 else later
        changes.append((part.log_probs - part.of(step.old)).detach())
        if changes is later:
            advantages.append(part.of(step.advantages))
        return part.log_probs.sum() * 0

    attempts = RolloutConfig(searches=2, turn_tokens=8, temperature=temperature)
    module = train(attempts=attempts, extra_loss=watch, steps=1)
    assert len(first) > 1
    first, later, advantages = map(torch.cat, (first, later, advantages))
    assert first.abs().max() < 1e-4
    assert later.abs().max() > 0.01
    row, count = module.history.rows[0], len(first) + len(later)
    ratio = later.exp()
    held = (ratio > 1.2) & (advantages > 0) | (ratio < 0.8) & (advantages < 0)
    assert row["clipped"] == pytest.approx(held.sum().item() / count)
    assert row["kl to old"] == pytest.approx((1 / ratio + later - 1).sum().item() / count, rel=0.01)
    assert held.any()


@pytest.mark.parametrize("steps", [2, 3])
def test_the_schedule_counts_updates(steps):
    """Two a step; it ends with the last one, be that set by the epochs or by `max_steps`."""
    spy = Spy()
    trainer = {"callbacks": [spy], "max_steps": 2 * steps if steps < 3 else -1}
    train(schedule="linear", epochs=1, trainer=trainer)
    expected = [0.01 * (1 - n / (2 * steps)) for n in range(2 * steps)]
    assert spy.rates == pytest.approx(expected)


# -- observations ------------------------------------------------------------------------------


class Gradients:
    """Gradients at the last hidden state of every token that was read in training."""

    def __init__(self, lm):
        self.read = []
        lm.model.get_decoder().register_forward_hook(self.keep, with_kwargs=True)

    def keep(self, module, _, named, output):
        if torch.is_grad_enabled():
            output.last_hidden_state.retain_grad()
            self.read.append((named["input_ids"], output.last_hidden_state))

    def before(self, step, where):
        """Greatest gradient at the states from which marked tokens are predicted."""
        found = []
        for ids, states in self.read:
            for row, state in zip(ids, states.grad, strict=True):
                same = [
                    n
                    for n, real in enumerate(step.batch.real)
                    if torch.equal(step.batch.ids[n][real], row[: real.sum()])
                ]
                marked = where[same[0], : len(row)]
                found.append(state[:-1][marked[1:]].abs().amax(1))
        return torch.cat(found)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("average", ["token", "sequence"])
def test_no_gradient_reaches_the_logits_of_an_observation(mask, average, small_passes):
    """And without the mask it does, to show that the test would see it."""
    lm, watch = searching_lm(), Watch()
    watched = Gradients(lm)
    config = GRPOConfig(group=4, minibatches=1, mask_observations=mask, average=average)
    train(lm, config, steps=1, questions=[1, 2], extra_advantage=watch)
    (step,) = watch.steps
    batch = step.batch
    assert batch.observation.sum() > 20
    observed = watched.before(step, batch.observation)
    prompts = watched.before(step, batch.real & ~batch.observation & ~batch.policy)
    assert len(observed) > 20
    assert (observed == 0).all() if mask else (observed > 1e-6).float().mean() > 0.9
    assert (prompts == 0).all()
    assert (watched.before(step, batch.policy) > 1e-6).float().mean() > 0.9


@pytest.mark.parametrize("mask", [True, False])
def test_what_is_thought_of_observations_cannot_change_an_update(mask):
    """Neither their log-probabilities nor an advantage given to them counts."""

    def weights(where, observed):
        def tamper(step):
            noise = torch.randn(step.old.shape, generator=torch.Generator().manual_seed(0))
            if observed:
                step.old = torch.where(step.batch.observation, noise, step.old)
            return noise * where(step.batch)

        return train(config=config, steps=2, extra_advantage=tamper)

    config = GRPOConfig(group=4, mask_observations=mask)
    own = weights(lambda batch: batch.policy, observed=False)
    everywhere = weights(lambda batch: batch.real, observed=False)
    tampered = weights(lambda batch: batch.policy, observed=True)
    assert same_weights(own, everywhere) is mask
    assert same_weights(own, tampered) is mask


# -- what a method may add ---------------------------------------------------------------------


def test_a_further_advantage_is_added_token_by_token():
    """Here it takes the group's advantage back, and gives the answers one of their own."""

    def answers(step):
        assert (step.advantages[~step.mask] == 0).all()
        return -step.advantages + 2.0 * (step.batch.answer | step.batch.observation)

    watch = Watch()
    config = GRPOConfig(group=4, minibatches=1, gradient_norm=LIMITLESS)
    _, spy, _ = spied(config=config, steps=1, extra_advantage=answers, extra_loss=watch.no_loss)
    (step,) = watch.steps
    batch, start = step.batch, searching_lm().model
    given = batch.policy & batch.answer
    assert given.any()
    torch.testing.assert_close(step.advantages, 2.0 * given)
    scores = start(input_ids=batch.ids).logits[:, :-1].log_softmax(-1)
    scores = scores.gather(2, batch.ids[:, 1:, None])[..., 0]
    loss = -2.0 * scores[given[:, 1:]].sum() / batch.policy.sum()  # a ratio of 1 has this gradient
    assert_all_close(spy.gradients[0], gradients_of(loss, start), scale=1e-3)


@pytest.mark.parametrize("average", ["token", "sequence"])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_shares_of_a_further_loss_add_up_to_the_whole(average, minibatches, small_passes):
    """Weighted as the tokens are, it is a mean of the minibatch, in however many passes."""
    config = GRPOConfig(group=4, minibatches=minibatches, average=average, gradient_norm=LIMITLESS)
    parts = []

    def further(step, part):
        parts.append(part)
        return (part.logits.square().mean(1) * part.weights).sum()

    module, spy, (step,) = spied(
        config=config, steps=1, extra_loss=further, reward=lambda *_: 0.0, learning_rate=0.01
    )
    assert len(parts) > 2 * minibatches
    assert sum(p.weights.sum().item() for p in parts) == pytest.approx(minibatches)
    losses = []
    for number, (model, found) in enumerate(zip(spy.models, spy.gradients, strict=True)):
        values = []
        for attempt in step.attempts[number::minibatches]:
            batch = collate([attempt], 0)
            logits = model(input_ids=batch.ids).logits[0, :-1]
            values.append(logits[batch.policy[0, 1:]].square().mean(1))
        means = torch.stack([v.mean() for v in values])
        loss = torch.cat(values).mean() if average == "token" else means.mean()
        assert_all_close(found, gradients_of(loss, model))
        losses.append(loss.item())
    assert module.history.rows[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_a_further_loss_comes_on_top_of_the_own():
    config = GRPOConfig(group=4, minibatches=1, gradient_norm=LIMITLESS)

    def gradients(reward, extra):
        return spied(config=config, steps=1, reward=reward, extra_loss=extra)[1].gradients[0]

    def further(step, part):
        return (part.logits.square().mean(1) * part.weights).sum()

    both, own = gradients(uneven, further), gradients(uneven, None)
    alone = gradients(lambda *_: 0.0, further)
    assert_all_close(both, [a + b for a, b in zip(own, alone, strict=True)])


def test_a_part_has_its_values_and_the_logits_of_its_attempts(small_passes):
    """A teacher that sees no more than the student has its logits, bit for bit."""
    checked = []

    def check(step, part):
        attempts = [step.attempts[n] for n in part.rows]
        teacher = response_logits(lm, attempts)
        assert torch.equal(teacher, part.logits)
        assert part.logits.requires_grad
        tokens = [t for a in attempts for s in a.segments if s.sampled for t in s.ids]
        assert part.of(step.batch.ids).tolist() == tokens
        recorded = [v for a in attempts for s in a.segments if s.sampled for v in s.log_probs]
        torch.testing.assert_close(part.of(step.old), torch.tensor(recorded))
        checked.append(len(attempts))
        return part.log_probs.sum() * 0

    lm = searching_lm()
    train(lm, steps=1, extra_loss=check)
    assert sum(checked) == 8


def test_the_reference_is_used_as_it_is():
    """Without dropout, without being trained, and whole, however the policy moves."""
    lm, reference = searching_lm(), searching_lm().model
    for layer in reference.model.layers:
        layer.self_attn.attention_dropout = 0.9
    before = copy.deepcopy(reference.state_dict())
    config = GRPOConfig(group=4, kl=0.1)
    _, _, steps = spied(lm=lm, config=config, reference=reference, steps=3)
    for step in steps:
        expected = token_log_probs(searching_lm().model, step.batch, step.mask)
        torch.testing.assert_close(step.reference, expected)
        assert (step.reference == 0).equal(~step.mask)
    assert all(torch.equal(before[n], v) for n, v in reference.state_dict().items())
    assert not any(p.requires_grad for p in reference.parameters())


def test_a_strong_divergence_penalty_keeps_the_policy_near():
    def distance(kl):
        config = GRPOConfig(group=4, kl=kl)
        reference = searching_lm().model if kl else None
        _, _, steps = spied(config=config, reference=reference, steps=9, learning_rate=0.003)
        start = token_log_probs(searching_lm().model, steps[-1].batch, steps[-1].mask)
        return (start - steps[-1].old).abs().mean()

    assert distance(10.0) < 0.5 * distance(0.0)


def test_only_an_adapter_is_trained():
    base = searching_lm()
    torch.manual_seed(0)
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    lm = LanguageModel(get_peft_model(base.model, adapter), base.tokenizer)
    before = copy.deepcopy(lm.model.state_dict())
    module = train(lm, steps=2)
    after = lm.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert len(changed) == 8
    groups = module.trainer.optimizers[0].param_groups
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(
        before[name].numel() for name in changed
    )


# -- what is recorded --------------------------------------------------------------------------


def test_history_holds_every_column():
    seen = []

    def reward(attempt, question):
        seen.append(attempt)
        return uneven(attempt, question)

    module = train(reward=reward, measures={"asked": searches}, steps=4)
    rows = module.history.rows
    assert set(rows[0]) == {
        "step", "seconds", "rollouts", "reward", "asked", "searches", "loss", "clipped",
        "kl to old", "gradient norm", "dead groups", "all wrong", "all right", "entropy",
        "written tokens", "seconds generate", "seconds retrieve", "seconds score",
        "seconds update",
    }  # fmt: skip
    assert all(list(row) == list(rows[0]) for row in rows)
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    assert [row["rollouts"] for row in rows] == [8, 16, 24, 32]
    for n, row in enumerate(rows):
        attempts = seen[8 * n : 8 * n + 8]
        asked = np.mean([len(a.queries) for a in attempts])
        assert row["asked"] == row["searches"] == pytest.approx(asked)
        written = [v for a in attempts for s in a.segments if s.sampled for v in s.log_probs]
        assert row["entropy"] == pytest.approx(-np.mean(written), rel=1e-4)
        assert row["written tokens"] == pytest.approx(len(written) / 8)
        assert 0 < row["kl to old"] < 10
    assert sum(row["asked"] for row in rows) > 0


def test_reward_and_group_statistics_are_recorded():
    rewards = {"1": [0, 0, 1, 1], "2": [0, 0, 0, 0], "3": [1, 1, 1, 1], "4": [0, 1, 0, 0]}
    left = {name: list(values) for name, values in rewards.items()}

    def reward(attempt, question):
        return left[question["id"]].pop(0)

    rows = train(reward=reward, questions=[1, 2, 3, 4], steps=2).history.rows
    assert sum(row["reward"] for row in rows) / 2 == pytest.approx(7 / 16)
    totals = {n: sum(r[n] for r in rows) for n in ("dead groups", "all wrong", "all right")}
    assert totals == {"dead groups": 1, "all wrong": 0.5, "all right": 0.5}


def test_times_add_up():
    """Scoring, which is made slow here, is no part of the update."""

    def slow(step):
        time.sleep(0.05)
        return torch.zeros_like(step.advantages)

    rows = train(steps=6, extra_advantage=slow).history.rows
    names = ("generate", "retrieve", "score", "update")
    spent = [sum(row[f"seconds {name}"] for name in names) for row in rows]
    passed = np.diff([row["seconds"] for row in rows])
    assert (spent[1:] <= passed).all()
    assert sum(spent[1:]) > 0.5 * sum(passed)
    assert all(row["seconds score"] >= 0.05 for row in rows)
    assert all(row[f"seconds {name}"] > 0 for row in rows for name in ("generate", "update"))


def test_a_step_without_a_search_has_the_columns_of_any_other():
    at_once = train(attempts=RolloutConfig(answer_at_once=True), steps=1).history.rows[0]
    assert (at_once["searches"], at_once["seconds retrieve"]) == (0, 0)
    assert list(at_once) == list(train(steps=1).history.rows[0])


# -- learning, seeds, resuming -----------------------------------------------------------------


def test_it_learns_which_word_is_rewarded():
    """Among six words; at the start a fifth of the attempts end with this one alone."""

    def reward(attempt, question):
        return exact_match_reward(attempt, question | {"golden_answers": ["mentor"]})

    module = train(
        reward=reward, config=GRPOConfig(group=16), steps=25, learning_rate=0.003, epochs=20
    )
    found = module.history.column("reward")[1]
    assert found[:3].mean() < 0.3
    assert found[-3:].mean() > 0.9


def test_seeds_decide_the_weights_bit_for_bit():
    weights = [train(seed=seed, steps=3) for seed in (0, 0, 1)]
    assert same_weights(weights[0], weights[1])
    assert not same_weights(weights[0], weights[2])


def test_attempts_differ_within_a_group_and_between_steps():
    _, _, steps = spied(steps=6, questions=[1, 2], learning_rate=0.0)
    written = [tuple(a.ids) for step in steps for a in step.attempts]
    assert len({w for w in written[:8]}) > 3
    assert [a.ids for a in steps[0].attempts] != [a.ids for a in steps[1].attempts]


class Killed(Exception):
    pass


class KillAfter(lightning.Callback):
    """Ends the run as if its process were killed."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step >= self.step:
            raise Killed


class WithValidation(GRPO):
    def validation(self):
        return {"weight": self.model.lm_head.weight.abs().sum().item()}


@pytest.mark.parametrize("update", [2, 4, 6])
def test_resume_gives_the_weights_of_the_uninterrupted_run(update, tmp_path):
    """Also after update 6, the last of an epoch."""

    def run(seed, resume=None, callbacks=()):
        torch.manual_seed(seed)
        modules = []

        def method(*arguments, **named):
            modules.append(WithValidation(*arguments, **named))
            return modules[0]

        config = GRPOConfig(group=4, kl=0.1)
        trainer = {"max_steps": -1, "callbacks": list(callbacks), "resume": resume}
        reference = searching_lm().model
        try:
            train(method=method, config=config, epochs=2, reference=reference, trainer=trainer)
        except Killed:
            assert path.exists()
        return modules[0]

    path = tmp_path / "half.ckpt"
    saving = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=update)
    whole = run(0)
    killed = run(0, callbacks=[saving, KillAfter(update + 2)])
    assert len(killed.history.column("loss")[0]) < 6
    resumed = run(99, resume=path)
    assert same_weights(resumed, whole)

    def rows(module):
        return [{k: v for k, v in r.items() if "seconds" not in k} for r in module.history.rows]

    assert rows(resumed) == rows(whole)
    assert whole.history.column("rollouts")[1].tolist() == [8, 16, 24, 32, 40, 48]
    assert len(whole.history.column("weight")[1]) == 2


# -- what can go wrong -------------------------------------------------------------------------


def saved_step(build):
    (path,) = (build / "failed").iterdir()
    return torch.load(path, weights_only=True), path


class Poison(lightning.Callback):
    """Puts a NaN into the model before a step."""

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step == 4:
            module.model.lm_head.weight.data[:, 0] = float("nan")


def test_weights_gone_astray_are_reported_and_the_step_is_saved(tmp_path, monkeypatch):
    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path))
    modules, lm = [], searching_lm()

    def method(*arguments, **named):
        modules.append(GRPO(*arguments, **named))
        return modules[0]

    with pytest.raises(InputError, match=r"training step 2: found .*; expected finite") as error:
        train(lm, method=method, trainer={"callbacks": [Poison()]}, steps=4, seed=3)
    saved, path = saved_step(tmp_path)
    assert str(path) in str(error.value)
    assert (saved["step"], len(saved["questions"])) == (2, 8)
    assert len(saved["attempts"]) == 8
    prompts = [toy_tokenizer().decode(ids) for ids in saved["attempts"]]
    asked = sorted(QUESTIONS[n]["question"] for n in saved["questions"])
    assert sorted(p.split("<user> ")[1].split(" <assistant>")[0] for p in prompts) == asked
    weights, same = saved["weights"], train(steps=2, seed=3).model.state_dict()
    assert weights["lm_head.weight"][:, 0].isnan().all()
    assert all(torch.equal(weights[n], v) for n, v in same.items() if n != "lm_head.weight")
    assert len(modules[0].history.rows) == modules[0].steps == 2
    assert lm.model.training


@pytest.mark.parametrize(
    "further",
    [
        lambda step, part: (part.log_probs * 0).sum() + float("inf"),  # with a slope of 0
        lambda step, part: (part.log_probs * 0).abs().sqrt().sum(),  # 0, with a slope of NaN
    ],
    ids=["loss", "gradient"],
)
def test_a_loss_gone_astray_changes_no_weight(further, tmp_path, monkeypatch):
    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path))
    lm, watch = searching_lm(), Watch()
    with pytest.raises(InputError, match="training step 0"):
        train(lm, extra_loss=further, extra_advantage=watch)
    saved, _ = saved_step(tmp_path)
    assert saved["attempts"] == [attempt.ids for attempt in watch.steps[0].attempts]
    for name, value in searching_lm().model.state_dict().items():
        assert torch.equal(saved["weights"][name], value)
        assert torch.equal(lm.model.state_dict()[name], value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"average": "x"}, r"average: found 'x'; expected one of token, sequence"),
        ({"average": "tokens"}, "did you mean 'token'"),
        ({"group": 1}, "group: found 1; expected 2 or more"),
        ({"minibatches": 0}, "minibatches: found 0; expected 1 or more"),
        ({"group": 4, "minibatches": 5}, "minibatches: found 5; expected at most 4"),
    ],
)
def test_configurations_that_cannot_be(changes, message):
    with pytest.raises(InputError, match=message):
        GRPOConfig(**changes)


@pytest.mark.parametrize(("kl", "given"), [(0.1, False), (0.0, True)])
def test_a_reference_belongs_to_a_divergence_and_a_divergence_to_a_reference(kl, given):
    reference = searching_lm().model if given else None
    config = GRPOConfig(kl=kl)
    found = "with a reference" if given else "without a reference"
    with pytest.raises(InputError, match=f"found kl {kl:g} {found}; expected"):
        GRPO(searching_lm(), Shelf(), QUESTIONS, config, RolloutConfig(), reference=reference)
