"""The Lightning backbone: batches, optimisation, history, and a resume that changes nothing."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning
import matplotlib
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from minisearch import lit
from minisearch.errors import InputError
from minisearch.lit import Batches, History, Module, Optimisation, fit
from minisearch.profiles import Settings

matplotlib.use("agg")
ROWS, BATCH, EPOCHS = 50, 8, 3  # six batches an epoch, two rows dropped
STEPS = EPOCHS * (ROWS // BATCH)
SETTINGS = Settings.of("smoke")
OPTIMISATION = Optimisation(0.05, weight_decay=0.1, warmup_steps=4, schedule="cosine")


class Regression(Module):
    """A linear map with dropout, which makes the random state matter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Linear(4, 1))

    def loss(self, batch):
        error = self.layers(batch["x"])[:, 0] - batch["y"]
        return {"loss": error.square().mean(), "worst": error.abs().max()}

    def validation(self):
        assert not self.layers.training
        return {"weight": self.layers[1].weight.abs().sum().item()}


def batches(**changes):
    x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(1))
    tensors = {"x": x, "y": x @ torch.tensor([1.0, -2.0, 0.5, 0.0]), "row": torch.arange(ROWS)}
    return Batches(tensors, **{"batch_size": BATCH, "seed": 3, **changes})


def rows_without_time(module):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in module.history.rows]


def test_each_epoch_is_another_order_of_different_rows():
    source = batches()
    epochs = [torch.cat([b["row"] for b in source]).tolist() for _ in range(2)]
    assert len(source) == 6
    assert all(len(set(rows)) == 48 for rows in epochs)
    assert epochs[0] != epochs[1]
    again = batches()
    assert [torch.cat([b["row"] for b in again]).tolist() for _ in range(2)] == epochs
    assert torch.cat([b["row"] for b in batches(seed=4)]).tolist() != epochs[0]


def test_batches_go_on_where_they_stopped():
    pools = {"negative": torch.arange(1000), "square": torch.arange(1000) ** 2}
    draw = lambda source: [(b["row"].tolist(), b["negative"].tolist()) for b in source]  # noqa: E731
    whole = batches(pools=pools)
    expected = [*draw(whole), *draw(whole)]
    started = iter(source := batches(pools=pools))
    for _ in range(4):
        next(started)
    resumed = batches(pools=pools)
    resumed.load_state_dict(source.state_dict())
    assert [*draw(resumed), *draw(resumed)] == expected[4:]


def test_pools_are_drawn_anew_for_each_batch_and_row_by_row():
    pools = {"negative": torch.arange(1000), "square": torch.arange(1000) ** 2}
    seen = list(batches(pools=pools))
    assert all(torch.equal(b["square"], b["negative"] ** 2) for b in seen)
    drawn = torch.cat([b["negative"] for b in seen])
    assert len(drawn) == 6 * BATCH
    assert len(drawn.unique()) > 40
    assert drawn.max() > 800


@pytest.mark.parametrize("size", [0, ROWS + 1])
def test_impossible_batch_size(size):
    with pytest.raises(InputError, match=f"batch_size: found {size}; expected 1 to 50"):
        batches(batch_size=size)


def test_columns_of_different_lengths():
    with pytest.raises(InputError, match=r"lengths \{'a': 9, 'b': 8\}; expected one length"):
        Batches({"a": torch.zeros(9), "b": torch.zeros(8)}, 2, seed=0)


def test_learning_rate_factors():
    linear = Optimisation(warmup_steps=2)
    factors = [linear.factor(step, 6) for step in range(6)]
    np.testing.assert_allclose(factors, [0.5, 1, 1, 0.75, 0.5, 0.25])
    assert linear.factor(6, 6) == 0
    cosine = Optimisation(schedule="cosine")
    np.testing.assert_allclose([cosine.factor(s, 4) for s in (0, 2, 4)], [1, 0.5, 0], atol=1e-12)
    assert Optimisation(schedule="constant").factor(99, 100) == 1
    with pytest.raises(InputError, match="did you mean 'cosine'"):
        Optimisation(schedule="cosin")


def test_fit_is_the_plain_loop():
    """The loop that the chapters show, written out, gives the same weights and the same losses."""
    plain = Regression()
    matrix, bias = plain.layers[1].weight, plain.layers[1].bias
    groups = [{"params": [matrix]}, {"params": [bias], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=0.05, weight_decay=0.1, fused=True)
    source, losses = batches(), []
    torch.manual_seed(5)
    for _ in range(EPOCHS):
        for batch in source:
            for group in optimiser.param_groups:
                group["lr"] = 0.05 * OPTIMISATION.factor(len(losses), STEPS)
            loss = plain.loss(batch)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())

    module = Regression()
    torch.manual_seed(5)
    fit(module, batches(), SETTINGS, OPTIMISATION, EPOCHS)
    np.testing.assert_allclose(module.history.column("loss")[1], losses, rtol=1e-6)
    torch.testing.assert_close(module.layers[1].weight, matrix)
    assert losses[-1] < 0.5 * losses[0]


def test_fit_trains_what_was_left_in_evaluation_mode():
    """A model just loaded is in evaluation mode; in training its dropout must be on."""
    losses = []
    for module in (Regression(), Regression().eval()):
        torch.manual_seed(5)
        fit(module, batches(), SETTINGS, OPTIMISATION, EPOCHS)
        losses.append(module.history.column("loss")[1].tolist())
    assert losses[0] == losses[1]


class Killed(Exception):
    pass


class KillAfter(lightning.Callback):
    """Ends the run as if its process were killed."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step >= self.step:
            raise Killed


@pytest.mark.parametrize("step", [1, 5, 6, 7, 14])
def test_resume_gives_the_weights_of_the_uninterrupted_run(step, tmp_path):
    """Also at step 6, the last of an epoch: in mid-epoch or between two makes no difference."""

    def run(random_state, **changes):
        module = Regression()
        torch.manual_seed(random_state)
        try:
            fit(module, batches(), SETTINGS, OPTIMISATION, EPOCHS, **changes)
        except Killed:
            assert path.exists()
        return module

    path = tmp_path / "half.ckpt"
    saving = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=step)
    whole = run(5)
    killed = run(5, callbacks=[saving, KillAfter(step + 2)])
    assert len(killed.history.column("loss")[0]) < STEPS
    resumed = run(99, resume=path)  # another process would have another random state

    assert rows_without_time(resumed) == rows_without_time(whole)
    for ours, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, expected)
    seconds = [row["seconds"] for row in resumed.history.rows]
    assert seconds == sorted(seconds)


def test_history_holds_every_step_and_plots():
    module = Regression()
    trainer = fit(module, batches(), SETTINGS, Optimisation(), epochs=2, max_steps=9)
    steps, losses = module.history.column("loss")
    assert steps.tolist() == list(range(9))
    assert len(module.history.column("weight")[0]) == 2  # each epoch once, the cut one too
    assert "weight" in trainer.callback_metrics
    axes = module.history.plot(names=["loss", "worst"])
    assert [line.get_label() for line in axes.lines] == ["loss", "worst"]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), losses)
    matplotlib.pyplot.close("all")
    assert History().column("loss")[0].shape == (0,)


def test_a_module_without_loss():
    with pytest.raises(NotImplementedError, match=r"Module must define loss"):
        Module().loss({})


def test_the_progress_bar_shows_steps_and_loss(monkeypatch, capsys):
    monkeypatch.setattr(lit, "tqdm", partial(lit.tqdm, disable=False))
    fit(Regression(), batches(), SETTINGS, Optimisation(), epochs=2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert "12/12" in last
    assert "loss=" in last


@pytest.mark.slow
def test_nothing_is_printed_where_bars_are_disabled():
    code = (
        "import test_lit as t; t.fit(t.Regression(), t.batches(), t.SETTINGS, t.Optimisation(), 1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=os.environ | {"TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout + done.stderr == ""
