"""How fast constrained beam search is beside transformers' `generate`, and how much a trie weighs.

    python tests/bench/beam_speed.py [--out _build/bench_beam.json]

Both sides of a pair are measured in turns, in one process of one thread, on the same model. The
least CPU time of a few tries counts: other programs can only add to it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from agent_speed import alone
from rivals import least, timed
from transformers import BartForConditionalGeneration
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

from minisearch.beam import Trie, _candidates, allowed_tokens, beam_search, nested_trie
from minisearch.models.generative import toy_bart_config

WORDS, CODES = 1000, 256  # tokens of queries, and of each position of an identifier
GENERATE: dict[str, Any] = {
    "do_sample": False, "length_penalty": 0.0, "early_stopping": False, "eos_token_id": None,
}  # fmt: skip


def some_ids(count: int, positions: int) -> np.ndarray:
    """Random identifiers. Shape: (count, positions)."""
    codes = np.random.default_rng(0).integers(0, CODES, (count, positions))
    return WORDS + CODES * np.arange(positions) + codes


def some_queries(count: int) -> torch.Tensor:
    """Queries of 3 to 8 words. Shape: (count, 8)."""
    queries = torch.randint(2, WORDS, (count, 8), generator=torch.Generator().manual_seed(0))
    for row in range(count):
        queries[row, 8 - row % 6 :] = 0
    return queries


def toy_bart(positions: int) -> Any:
    """The toy model, random but with an opinion."""
    torch.manual_seed(0)
    config = toy_bart_config(WORDS + CODES * positions, init_std=0.2)
    return BartForConditionalGeneration(config).eval()


def nested_of(ids: np.ndarray) -> dict[int, Any]:
    """The nested trie, out of sight of the garbage collector, which would slow `generate` down."""
    gc.disable()
    nested = nested_trie(ids)
    gc.freeze()
    gc.enable()
    return nested


def in_turns(tries: int, **works: Callable[[], Any]) -> dict[str, float]:
    """Least CPU milliseconds of each work; the first round warms up."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in works}
    for _ in range(tries + 1):
        for name, work in works.items():
            found[name].append(timed(work)[0])
    return {name: 1000 * least(times[1:])["cpu"] for name, times in found.items()}


def beside_generate(
    count: int, positions: int, width: int, queries: int, tries: int = 8
) -> dict[str, Any]:
    """CPU milliseconds a query, of `generate` and ours, and how much of the lists is the same."""
    ids, model, asked = some_ids(count, positions), toy_bart(positions), some_queries(queries)
    trie, allowed = Trie(ids), allowed_tokens(nested_of(ids))

    def plain() -> torch.Tensor:
        with torch.inference_mode():
            written = model.generate(
                asked, attention_mask=(asked != 0).long(), num_beams=width,
                num_return_sequences=width, prefix_allowed_tokens_fn=allowed,
                min_new_tokens=positions, max_new_tokens=positions, **GENERATE,
            )  # fmt: skip
        return written.view(queries, width, -1)[..., 1:]

    def ours() -> np.ndarray:
        return beam_search(model, asked, width, trie).tokens

    same = float((plain().numpy() == ours()).all(-1).mean())
    spent = in_turns(tries, generate=plain, ours=ours)
    return {
        "ids": count, "positions": positions, "width": width, "queries": queries,
        **{f"{name} ms a query": value / queries for name, value in spent.items()},
        "times": spent["generate"] / spent["ours"], "same": same,
    }  # fmt: skip


def constraint_steps(
    count: int, positions: int, beams: int = 800, tries: int = 8
) -> list[dict[str, Any]]:
    """CPU milliseconds to keep what may follow `beams` beams of each length, among all scores."""
    ids = some_ids(count, positions)
    trie = Trie(ids)
    width, rows = 50, trie.identifiers()
    rows = rows[np.random.default_rng(1).integers(0, len(rows), beams)]
    scores = torch.randn(beams, WORDS + CODES * positions).log_softmax(1)
    before = np.zeros((beams // width, width), dtype=np.float32)
    plain = PrefixConstrainedLogitsProcessor(allowed_tokens(nested_of(ids)), width)
    table = []
    for level in range(1, positions):
        prefixes = np.unique(trie.identifiers()[:, :level], axis=0)
        nodes = Trie(prefixes).find(rows[:, :level])
        written = torch.tensor(rows[:, :level])
        written = torch.cat([torch.ones(beams, 1, dtype=torch.long), written], dim=1)
        spent = in_turns(
            tries,
            generate=lambda written=written: plain(written, scores),
            ours=lambda level=level, nodes=nodes: _candidates(
                scores, before, trie.children(level, nodes)
            ),
        )
        children = float(trie.children(level, nodes).counts.mean())
        table.append(
            {"ids": count, "position": level + 1, "children": children, **spent,
             "times": spent["generate"] / spent["ours"]}
        )  # fmt: skip
    return table


def memory(count: int, positions: int) -> dict[str, Any]:
    """MiB of both tries, dictionaries without their tokens, and seconds to build ours."""
    ids = some_ids(count, positions)
    built, trie = timed(lambda: Trie(ids))

    def weight(node: dict[int, Any]) -> int:
        return sys.getsizeof(node) + sum(map(weight, node.values()))

    both = {"arrays": trie.nbytes / 2**20, "dictionaries": weight(nested_of(ids)) / 2**20}
    return {
        "ids": count, "positions": positions, **{f"{name} MiB": mib for name, mib in both.items()},
        "times": both["dictionaries"] / both["arrays"], "build cpu": built["cpu"],
    }  # fmt: skip


def by_size(
    counts: tuple[int, ...], width: int, queries: int, tries: int = 30
) -> list[dict[str, Any]]:
    """CPU milliseconds a query over tries of several sizes, 4 positions each."""
    model, asked = toy_bart(4), some_queries(queries)
    sizes = {f"{count}": Trie(some_ids(count, 4)) for count in counts}
    works = {
        name: lambda trie=trie: beam_search(model, asked, width, trie)
        for name, trie in sizes.items()
    }
    spent = in_turns(tries, **works)
    return [
        {"ids": int(name), "width": width, "queries": queries, "ms a query": value / queries}
        for name, value in spent.items()
    ]


# -- all of it -------------------------------------------------------------------------------------


def tables() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Name and rows of each table, as soon as it is measured."""
    sizes = ((10_000, 3), (100_000, 4), (1_000_000, 4))
    yield (
        "beside generate",
        [
            alone(beside_generate, *size, width, queries, tries=20 if queries == 1 else 4)
            for size in sizes
            for width, queries in ((10, 1), (50, 1), (10, 16), (50, 16))
        ],
    )
    yield "constraint alone", [row for size in sizes for row in alone(constraint_steps, *size)]
    yield "memory", [alone(memory, *size) for size in sizes]
    counts = tuple(count for count, _ in sizes)
    yield "size", [*alone(by_size, counts, 50, 1), *alone(by_size, counts, 50, 16, tries=8)]


def main() -> None:
    """Measure, print each table, write them all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("_build/bench_beam.json"))
    out: Path = parser.parse_args().out
    os.environ |= {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}  # of those to come
    packages = {name: version(name) for name in ("torch", "transformers")}
    found: dict[str, Any] = {**packages, "load": psutil.getloadavg(), "tables": {}}
    for name, rows in tables():
        found["tables"][name] = rows
        text = pd.DataFrame(rows).to_string(index=False, float_format="%.3g")
        print(f"\n{name}\n{text}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
