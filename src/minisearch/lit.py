"""The Lightning backbone: a module that needs only `loss`, resumable batches, history, `fit`.

What `fit` does, in one loop::

    for epoch in range(epochs):
        for batch in batches:
            loss = module.loss(batch)
            loss.backward()
            clip_grad_norm_(module.parameters(), clip)
            optimiser.step(), schedule.step(), optimiser.zero_grad()
        module.validation()

Lightning runs that loop on one CPU, on several processes, or on GPUs.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm

from minisearch.errors import InputError, one_of
from minisearch.profiles import Settings, derive_seed, quiet, trainer_arguments

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Optimisation:
    """AdamW with warm-up and decay."""

    learning_rate: float = 1e-3  # the highest
    weight_decay: float = 0.0  # of matrices; biases and gains are never decayed
    warmup_steps: int = 0  # from 0 up to learning_rate in a line
    schedule: str = "linear"  # then down to 0 at the last step: constant, linear or cosine
    clip: float | None = 1.0  # greatest gradient norm

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise one_of("parameter schedule", self.schedule, list(SCHEDULES))

    def factor(self, step: int, total: int) -> float:
        """The share of `learning_rate` that update number `step` (from 0) of `total` uses."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        decayed = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
        return max(0.0, decayed.get(self.schedule, 1.0))


@dataclass
class History:
    """What was logged: one row a step (or validation) with `step`, `seconds` and named values."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of one name. Shape: (R,), (R,)."""
        pairs = [(row["step"], row[name]) for row in self.rows if name in row]
        return np.array([step for step, _ in pairs]), np.array([value for _, value in pairs])

    def plot(self, axes: Axes | None = None, names: Sequence[str] = ("loss",)) -> Axes:
        """One line a name over the steps; rows that lack the name are skipped."""
        import matplotlib.pyplot as plt

        axes = axes or plt.gca()
        for name in names:
            axes.plot(*self.column(name), label=name)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(names[0] if len(names) == 1 else "value")
        if len(names) > 1:
            axes.legend()
        return axes


class Batches:
    """Rows of tensors in a seeded order that can stop anywhere and go on exactly there.

    A batch depends on (seed, epoch, position) alone. On W processes each takes its slice of the
    same batch, so that the union is the batch of one process. The last, incomplete one is dropped.

    Args:
        tensors: columns of one length.
        batch_size: rows a step, over all processes together.
        seed: of the order and of the draws.
        pools: columns of another length, of which `batch_size` rows are drawn at random for each
            batch: random negatives.

    Raises:
        InputError: for columns of different lengths, or fewer rows than `batch_size`.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        batch_size: int,
        seed: int,
        pools: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.tensors, self.batch_size, self.seed = dict(tensors), batch_size, seed
        self.pools = dict(pools or {})
        self.rows, self.pool_rows = _rows(self.tensors), _rows(self.pools)
        if not 1 <= batch_size <= self.rows:
            expected = f"1 to {self.rows}, the training rows"
            raise InputError("parameter batch_size", str(batch_size), expected, "change it.")
        self.epoch = self.position = 0

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0
        order = torch.from_numpy(self._random("order", self.epoch).permutation(self.rows))
        while self.position < len(self):
            start = self.position * self.batch_size
            self.position += 1
            batch = self._slice(self.tensors, order[start : start + self.batch_size])
            if self.pools:
                random = self._random("pools", self.epoch, self.position)
                drawn = random.integers(0, self.pool_rows, self.batch_size)
                batch |= self._slice(self.pools, torch.from_numpy(drawn))
            yield batch

    def _slice(self, columns: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        if dist.is_available() and dist.is_initialized():
            world = dist.get_world_size()
            if len(rows) % world:
                expected = f"a multiple of {world}, the number of processes"
                raise InputError("parameter batch_size", str(len(rows)), expected, "change it.")
            rows = rows.chunk(world)[dist.get_rank()]
        return {name: column[rows] for name, column in columns.items()}

    def _random(self, *names: object) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, *names))

    def state_dict(self) -> dict[str, int]:
        """Where the iteration stands; Lightning stores it in its checkpoints."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a stored state at the next iteration."""
        self.epoch, self.position = state["epoch"], state["position"]


def _rows(columns: Mapping[str, Tensor]) -> int:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InputError("Batches", f"lengths {lengths}", "one length", "select the same rows.")
    return next(iter(lengths.values()), 0)


class Module(lightning.LightningModule):
    """Base of a chapter's method: a subclass writes `loss`, and `validation` if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.history = History()
        self.optimisation = Optimisation()
        self.total_steps = 0  # set by fit, as is the line above
        self._clock = self._seconds = 0.0
        self._random_state: Tensor | None = None

    def loss(self, batch: dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """The loss of a batch, alone or under "loss" beside further scalars to log."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(batch)")

    def validation(self) -> dict[str, float]:
        """Values to log after each epoch, computed in evaluation mode."""
        return {}

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        values = self.loss(batch)
        if isinstance(values, Tensor):
            values = {"loss": values}
        self._record({name: float(self._mean(v.detach())) for name, v in values.items()})
        return values["loss"]

    def on_train_epoch_end(self) -> None:
        self.eval()
        with torch.no_grad():
            values = self.validation()
        self.train()
        if values:
            self.log_dict(values)  # for Lightning's own callbacks, such as EarlyStopping
            self._record(values)

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        o, total = self.optimisation, self.total_steps
        optimiser = AdamW(groups, o.learning_rate, weight_decay=o.weight_decay, fused=True)
        schedule = LambdaLR(optimiser, lambda step: o.factor(step, total))
        return [optimiser], [{"scheduler": schedule, "interval": "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = [dict(row) for row in self.history.rows]
        checkpoint["random_state"] = torch.get_rng_state()  # dropout

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history.rows = checkpoint["history"]
        self._seconds = max((row["seconds"] for row in self.history.rows), default=0.0)
        self._random_state = checkpoint["random_state"]

    def on_train_start(self) -> None:
        self._clock = time.perf_counter() - self._seconds
        if self._random_state is not None:
            torch.set_rng_state(self._random_state.cpu())
            last_batch = self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
            if last_batch and self.history.rows[-1]["step"] < self.trainer.global_step:
                # Saved between the last step of an epoch and its end, which is not called again.
                self.on_train_epoch_end()

    def _mean(self, value: Tensor) -> Tensor:
        return value if self.trainer.world_size == 1 else self.trainer.strategy.reduce(value)

    def _record(self, values: Mapping[str, float]) -> None:
        seconds = time.perf_counter() - self._clock
        self.history.rows.append({"step": self.trainer.global_step, "seconds": seconds, **values})


class Progress(lightning.Callback):
    """A bar over all steps with the latest loss; TQDM_DISABLE=1 switches it off."""

    bar: Any = None

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        # disable is left to its environment variable, which any value given here would override
        hidden: Any = {} if trainer.is_global_zero else {"disable": True}
        done, total = trainer.global_step, module.total_steps
        self.bar = tqdm(total=total, initial=done, unit="step", **hidden)

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.bar.set_postfix(loss=f"{module.history.rows[-1]['loss']:.3f}", refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def teardown(self, *_: Any, **__: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def fit(
    module: Module,
    batches: Batches,
    settings: Settings,
    optimisation: Optimisation,
    epochs: int = 1,
    resume: Path | None = None,
    **trainer: Any,
) -> lightning.Trainer:
    """Train a module in place.

    Args:
        module: defines the loss; its `history` holds the curves afterwards.
        batches: the training rows.
        settings: the profile: accelerator, devices, strategy, precision.
        optimisation: learning rate and schedule.
        epochs: passes over the rows.
        resume: a checkpoint of an unfinished run with the same arguments; on one CPU process the
            weights become, bit for bit, those of a run that was never interrupted.
        trainer: further arguments of `lightning.Trainer`, such as `max_steps`, or `callbacks`, of
            which a `ModelCheckpoint(every_n_train_steps=...)` writes what `resume` reads.

    Returns:
        the trainer, for `save_checkpoint`.
    """
    quiet()
    module.train()  # from_pretrained leaves a model in evaluation mode, and so would Lightning
    module.optimisation = optimisation
    # Not trainer.estimated_stepping_batches: asked for while the optimiser is built, it makes
    # Lightning set up the batches before it has read their position from the checkpoint.
    updates = math.ceil(len(batches) / trainer.get("accumulate_grad_batches", 1))
    limit = trainer.get("max_steps", -1)
    module.total_steps = min(epochs * updates, limit if limit >= 0 else epochs * updates)
    trainer["callbacks"] = callbacks = [Progress(), *trainer.pop("callbacks", [])]
    arguments = {
        "max_epochs": epochs,
        "gradient_clip_val": optimisation.clip,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
    }
    runner = lightning.Trainer(**trainer_arguments(settings, **(arguments | trainer)))
    with warnings.catch_warnings():
        # An outdated torch name inside Lightning; a reminder to pass the ModelCheckpoint on again,
        # which keeps nothing that the second run needs.
        for message in (r".*isinstance\(treespec, LeafSpec\)", "Be aware that when using"):
            warnings.filterwarnings("ignore", message=message)
        runner.fit(module, train_dataloaders=batches, ckpt_path=resume)
    return runner
