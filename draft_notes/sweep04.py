"""Tuning sweep of chapter 4: the same number of settings for every arm of a claim, on development worlds.

    cd /work/wt04 && PYTHONPATH=src MINISEARCH_ROOT=$PWD MINISEARCH_BUILD=/tmp/build_04 TQDM_DISABLE=1 OMP_NUM_THREADS=1 \
        /work/main/.venv/bin/python /tmp/h/sweep04.py [--profile toy] [--worlds 100,101] [--seed 900] [--only sft,onebar] [--first 1]

One process, one line a run (stdout): world, arm, what was changed, then metrics. What has been printed to
--log (default /tmp/h/sweep04.log) is not run again, so that it may be stopped and started.
Nothing of the grid is read or written: worlds from 100 on and seed 900 are no part of it.

Sizes. primary claim (and those on clicks and CTR): 8 settings each of sft, onebar and cascade;
prompts: 3 rates each of compressed and verbose. 2 worlds. About 8 x (75 + 45) + 3 x (45 + 80) CPU-seconds a world,
and the start (75) and the cascade (a few) once: 25 CPU-minutes a world.
Reads: choose each arm's setting by its mean hr@8 over the worlds (cascade: by clicks), the smallest change among ties
within .005; write all of it to the card's `tuning`. Ablations take onebar's choice.
"""

from __future__ import annotations
import argparse, json, sys, tempfile, time
from dataclasses import replace
from pathlib import Path
import numpy as np
from minisearch import chapters

RATES = (1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 1.5e-3, 2e-3)
SWEEP: dict[str, list[dict]] = {
    # likelihood has one knob that matters, and gets a fine scale of it
    "sft": [{"distil_rate": rate} for rate in RATES],
    # the rate of stage 3, beta (with the rate of stage 2 at 3e-4), and what tau divides: 8 of the 12 that matter
    "onebar": [
        {"distil_rate": 5e-4, "tau": 2.0, "softened": "teacher"},  # as printed
        {"distil_rate": 5e-4, "tau": 2.0, "softened": "both"},
        {"distil_rate": 5e-4, "tau": 1.0},  # no softening: both readings are one
        {"distil_rate": 2e-4, "tau": 2.0, "softened": "teacher"},
        {"distil_rate": 2e-4, "tau": 2.0, "softened": "both"},
        {"distil_rate": 1e-3, "tau": 1.0},
        {"distil_rate": 5e-4, "tau": 1.0, "beta": 1.0},
        {"distil_rate": 5e-4, "tau": 1.0, "list_rate": 1e-4},
    ],
    "cascade": [{"neighbours": n, "ridge": r} for n in (8, 16, 24, 48) for r in (1.0, 100.0)],
    "compressed": [{"rate": rate} for rate in (1e-3, 2e-3, 4e-3)],
    "verbose": [{"rate": rate} for rate in (1e-3, 2e-3, 4e-3)],
}
CLAIMS = (("sft", "onebar", "cascade"), ("compressed", "verbose"))
assert all(len({len(SWEEP[arm]) for arm in arms}) == 1 for arms in CLAIMS)
SHOWN = (
    "hr@8",
    "mrr@8",
    "entropy_first",
    "distinct",
    "copied",
    "before_hr@8",
    "teacher_hr@8",
    "exposed",
    "clicks",
    "ctr",
    "open_clicks",
    "open_bad",
)


def world_of(c, profile, world):
    """Everything that does not depend on a setting of the sweep."""
    names = dict(
        profile=profile, world_seed=world, init_seed=0, data="", title_noise=-1.0, gate=-1.0
    )
    names |= {"settings": c.BarSettings.of(profile), "HISTORIES": {}, "MODELS": {}, "LISTS": {}}
    for name, value in names.items():
        setattr(c, name, value)
    for value in vars(c).values():  # nothing of another world
        if hasattr(value, "cache_clear"):
            value.cache_clear()
    c.quiet()
    c.use_threads(1)
    c.corpus = c.simulated(profile, world, -1.0)
    c.reader = c.Reader(c.all_texts(c.corpus))
    c.space = c.make_space(c.derive_seed(0, "space"))
    c.requests = c.asked("requests", c.settings.requests)
    c.bars = c.asked("bars", c.settings.bars)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--profile", default="toy")
    p.add_argument("--worlds", default="100,101")
    p.add_argument("--seed", type=int, default=900)
    p.add_argument("--only", default=",".join(SWEEP))
    p.add_argument("--first", type=int, default=99, help="only so many settings of each arm")
    p.add_argument("--log", default="/tmp/h/sweep04.log")
    a = p.parse_args()
    log = Path(a.log)
    done = {line.split("\t")[0] for line in log.read_text().splitlines()} if log.exists() else set()
    c = chapters.load("04_onebar")
    c.seed = a.seed
    for world in map(int, a.worlds.split(",")):
        todo = []
        for arm in a.only.split(","):
            for change in SWEEP[arm][: a.first]:
                key = json.dumps([a.profile, world, a.seed, arm, change])
                if key not in done:
                    todo.append((key, arm, change))
        if not todo:
            continue
        world_of(c, a.profile, world)
        plain = c.settings
        for key, arm, change in todo:
            c.settings = replace(plain, **change)
            if arm == "cascade":
                c.ranker.cache_clear()
            c.record = c.Recorder(Path(tempfile.mkdtemp(dir="/tmp/h")))
            began = time.process_time()
            c.run_arm(arm)
            spent, m = time.process_time() - began, c.record.metrics
            told = "  ".join(
                f"{n} {m[f'{arm}/{n}']:.4f}" for n in SHOWN if m.get(f"{arm}/{n}") is not None
            )
            line = f"{key}\t{told}  cpu {spent:.0f}s"
            print(line, flush=True)
            with log.open("a") as file:
                file.write(line + "\n")
        c.settings = plain


if __name__ == "__main__":
    sys.exit(main())
