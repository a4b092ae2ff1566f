"""The one dial: four profiles, settings with a source for every value, and Trainer arguments.

A chapter declares its settings once, all four columns side by side::

    @dataclass(frozen=True)
    class Recall(Settings):
        batch_size: int = dial(32, 128, 64, 64, source="64 (release, recall/dpr)")

    settings = Recall.of("toy", batch_size=256)
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Self, get_type_hints

from minisearch.errors import InputError, one_of

PROFILES = ("smoke", "toy", "small", "full")


def derive_seed(seed: int, *names: object) -> int:
    """A seed for one named use of randomness, independent of every other name.

    SHA-256 rather than `hash()`, whose result for strings differs between processes.

    >>> derive_seed(0, "clicks") == derive_seed(0, "clicks") != derive_seed(0, "titles")
    True
    """
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def dial(smoke: Any, toy: Any, small: Any, full: Any, *, source: str) -> Any:
    """A settings field with one value a profile; `source` quotes the paper or says "ours"."""
    columns = dict(zip(PROFILES, (smoke, toy, small, full), strict=True))
    return field(default=MISSING, kw_only=True, metadata={"columns": columns, "source": source})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of a chapter's settings: what the Trainer needs, in all four columns."""

    profile: str
    accelerator: str = dial("cpu", "cpu", "auto", "gpu", source="ours")
    devices: int = dial(1, 1, 1, 8, source="ours; the papers name no number of GPUs")
    strategy: str = dial("auto", "auto", "auto", "ddp_notebook", source="ours; notebooks fork")
    precision: str = dial("32-true", "32-true", "bf16-mixed", "bf16-mixed", source="ours")
    threads: int = dial(1, 1, 8, 8, source="ours; one thread keeps CPU runs repeatable")

    @classmethod
    def of(cls, profile: str, **overrides: Any) -> Self:
        """The settings of one profile, some values replaced.

        Raises:
            InputError: for an unknown profile or field, or a value of the wrong type.
        """
        if profile not in PROFILES:
            raise one_of("parameter profile", profile, list(PROFILES))
        values = {f.name: f.metadata["columns"][profile] for f in cls._dials()}
        for name, value in overrides.items():
            values[name] = cls._checked(name, value, values)
        return cls(profile=profile, **values)

    @classmethod
    def _dials(cls) -> list[Any]:
        return [f for f in fields(cls) if "columns" in f.metadata]

    @classmethod
    def _checked(cls, name: str, value: Any, known: dict[str, Any]) -> Any:
        if name not in known:
            raise one_of("parameter", name, sorted(known))
        wanted = get_type_hints(cls)[name]
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(wanted, type) and (
            not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)
        ):
            found = f"{value!r} ({type(value).__name__})"
            raise InputError(
                f"parameter {name}", found, wanted.__name__, f"pass {name} as {wanted.__name__}."
            )
        return value

    @classmethod
    def table(cls) -> list[dict[str, Any]]:
        """One row a setting: name, the four columns, and the source of the values."""
        return [
            {"setting": f.name, **f.metadata["columns"], "source": f.metadata["source"]}
            for f in cls._dials()
        ]


def trainer_arguments(settings: Settings, **extra: Any) -> dict[str, Any]:
    """Keyword arguments for `lightning.Trainer`, quiet enough for a published page."""
    return {
        "accelerator": settings.accelerator,
        "devices": settings.devices,
        "strategy": settings.strategy,
        "precision": settings.precision,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        **extra,
    }


def use_threads(count: int) -> None:
    """Limit torch and the OpenMP libraries that start later to `count` threads."""
    import torch

    os.environ["OMP_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)


def quiet() -> None:
    """Silence the start-up chatter of the libraries, and nothing else."""
    import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("lightning.pytorch", "lightning.fabric", "datasets", "bm25s"):
        logging.getLogger(name).setLevel(logging.ERROR)
