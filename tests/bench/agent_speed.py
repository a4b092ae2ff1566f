"""How fast the agent code is beside its rivals, what a step is made of, and what it grows with.

    python tests/bench/agent_speed.py [--out _build/bench.json]

Each measurement has a process of its own and one thread. `make bench` sets up what this needs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import psutil
import torch
from rivals import (
    GREEDY,
    GROUP,
    LEARNING_RATE,
    QUESTIONS,
    beside_plain_loop,
    beside_trl,
    least,
    one_in_twelve,
    timed,
    tireless_lm,
    trl_arguments,
    variety,
    world,
)  # fmt: skip

from minisearch.agents.grpo import GRPO, GRPOConfig
from minisearch.agents.rewards import exact_match_reward
from minisearch.agents.rollout import RolloutConfig
from minisearch.data.qa import Document
from minisearch.lit import Batches, Optimisation, fit
from minisearch.models.lm import load_lm
from minisearch.profiles import Settings
from minisearch.retriever import BM25Retriever


def toy_steps(group: int = GROUP, length: int = 0, steps: int = 5) -> dict[str, Any]:
    """The parts of a GRPO step on 8 questions, CPU seconds, the first step left out.

    With a `length`, attempts are one turn of that many tokens; without one they search, as the
    book's do.
    """
    before = peak_memory()
    lm = tireless_lm() if length else load_lm("toy-0")
    attempts = RolloutConfig(searches=0, turn_tokens=length) if length else RolloutConfig()
    questions, retriever = world(QUESTIONS * steps, seed=200)
    reward = exact_match_reward if not length else lambda a, _: variety(a.ids)
    module = GRPO(lm, retriever, questions, GRPOConfig(group=group), attempts, reward=reward)
    batches = Batches({"question": torch.arange(len(questions))}, QUESTIONS, seed=0)
    optimisation = Optimisation(LEARNING_RATE, schedule="constant", clip=None)
    with mock.patch.object(time, "perf_counter", time.process_time):  # what GRPO's clock reads
        fit(module, batches, Settings.of("toy"), optimisation)
    rows = pd.DataFrame(module.history.rows[1:])
    names = ("generate", "retrieve", "score", "update")
    parts = {name: float(rows[f"seconds {name}"].mean()) for name in names}
    return {
        "group": group, "written tokens": float(rows["written tokens"].mean()),
        "searches": float(rows["searches"].mean()),
        "dead groups": float(rows["dead groups"].mean()),
        **parts, "step": sum(parts.values()), "peak MB": (peak_memory() - before) / 1e6,
    }  # fmt: skip


def some_corpus(count: int, seed: int = 1) -> list[Document]:
    """Passages of 14 words, Zipf-distributed over 50,000 made-up ones."""
    letters = np.random.default_rng(0).integers(97, 123, (50_000, 8), dtype=np.uint8)
    lexicon = [row.tobytes().decode()[: 4 + n % 5] for n, row in enumerate(letters)]
    rows = np.random.default_rng(seed).zipf(1.2, (count, 14)) % len(lexicon)
    return [
        {"id": str(n), "contents": " ".join([lexicon[word] for word in row])}
        for n, row in enumerate(rows.tolist())
    ]


def retrieval(count: int) -> dict[str, Any]:
    """Seconds to index `count` passages, and to answer 64 queries of 4 words."""
    before = peak_memory()
    corpus = some_corpus(count)
    built, retriever = timed(lambda: BM25Retriever(corpus))
    queries = [" ".join(d["contents"].split()[:4]) for d in some_corpus(64, seed=2)]
    found = [timed(lambda: retriever.batch_search(queries, 2))[0] for _ in range(3)]
    return {
        "passages": count, "index cpu": built["cpu"],
        **{f"64 queries {kind}": value for kind, value in least(found).items()},
        "peak MB": (peak_memory() - before) / 1e6,
    }  # fmt: skip


def peak_memory() -> int:
    """The most memory that this process has ever held, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# -- all of it -------------------------------------------------------------------------------------


def alone(work: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Run in a process of its own, on one thread."""
    spawn = multiprocessing.get_context("spawn")
    one = {"initializer": torch.set_num_threads, "initargs": (1,)}
    with ProcessPoolExecutor(1, spawn, **one) as pool:
        return pool.submit(work, *args, **named).result()


def tables() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Name and rows of each table, as soon as it is measured."""
    as_it_comes = {"bf16": None, "gradient_checkpointing": True}
    yield (
        "grpo",
        [
            alone(beside_trl, "no group is dead", variety),
            alone(beside_trl, "no group is dead", variety, updates=1),
            alone(beside_trl, "no group is dead", variety, length=16),
            alone(beside_trl, "about half are dead", one_in_twelve),
            alone(beside_trl, "TRL as it comes", variety, tries=1, **as_it_comes),
        ],
    )
    yield (
        "attempts",
        [alone(beside_plain_loop, config=replace(GREEDY, topk=topk)) for topk in (2, 5)],
    )
    yield "group", [alone(toy_steps, group=group) for group in (4, 8, 16)]
    yield "length", [alone(toy_steps, length=length, steps=3) for length in (32, 64, 128, 256)]
    yield "corpus", [alone(retrieval, 10**power) for power in (3, 4, 5, 6)]


def machine() -> dict[str, Any]:
    """What the numbers hold for."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    packages = {name: version(name) for name in ("torch", "transformers", "trl", "lightning")}
    return {"cpu": cpu, "load": psutil.getloadavg(), "python": sys.version.split()[0], **packages}


def main() -> None:
    """Measure, print each table, write them all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("_build/bench.json"))
    out: Path = parser.parse_args().out
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}  # of the processes to come
    found: dict[str, Any] = {"machine": machine(), "trl": trl_arguments(4, 64, 2), "tables": {}}
    for name, rows in tables():
        found["tables"][name] = rows
        print(
            f"\n{name}\n{pd.DataFrame(rows).to_string(index=False, float_format='%.3g')}",
            flush=True,
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
