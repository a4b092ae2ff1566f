"""Tuning sweep of chapter 6: development world 100, training seed 2000; three learning rates for every arm of a claim.

Run (one thread, about 10 CPU-minutes for all; arms may be named, to split it over two processes):
    cd DIR && PYTHONPATH=DIR/src:/tmp/h MINISEARCH_ROOT=DIR MINISEARCH_BUILD=/tmp/build_06 TQDM_DISABLE=1 OMP_NUM_THREADS=1 \
        PYTHON /tmp/h/sweep06.py [csmcir,asymmetric,...]   (needs the package fugue-icons, or /tmp/h/fugue)
First the regime, from the baseline and the bankless tower alone: `sweep06.py regime` trains asymmetric and no_bank for 300, 450 and 600 steps at 2e-3.
Prints and appends to /tmp/h/sweep06.jsonl: R@1, R@10, subset@1 of the 1,000 test queries of world 100, and the curve.
"""
import json, sys, time
from dataclasses import replace
from core06 import *
RATES = (1e-3, 2e-3, 4e-3)
ARMS = ("csmcir", "no_bank", "fifo", "asymmetric", "asymmetric_captions", "words")
arms = sys.argv[1].split(",") if len(sys.argv) > 1 else ARMS
world, seed = 100, 2000
p = opened(world, seed)
by = p.bm25_ranks(p.sets["test"])
print("bm25", (by <= 1).mean(), (by <= 10).mean(), flush=True)
def one(arm, rate, **over):
    p.RATES[arm] = rate
    p.settings = replace(S0, **over)
    cpu = time.process_time()
    m = p.trained(arm)
    rows = p.measured(m, p.PLANS[arm])
    _, curve = m.history.column("dev R@10")
    out = {"arm": arm, "rate": rate, **over, **{k: round(float(v.mean()), 4) for k, v in rows.items()}, **m.__dict__.get("groups", {}).get("after", {}),
           "curve": [round(float(v), 3) for v in curve], "cpu": round(time.process_time() - cpu)}
    print(out, flush=True)
    with open("/tmp/h/sweep06.jsonl", "a") as f:
        f.write(json.dumps(out) + "\n")
S0 = p.settings
if arms == ["regime"]:
    for steps in (300, 450, 600):
        for arm in ("asymmetric", "no_bank"):
            one(arm, 2e-3, steps=steps)
else:
    for arm in arms:
        for rate in RATES:
            one(arm, rate)
print("SWEEPDONE")
