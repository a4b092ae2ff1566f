"""Development sweep of chapter 8: tuning rate, passes, then the rate of GRPO; the same for each arm.

    cd WT && PYTHONPATH=WT/src MINISEARCH_ROOT=WT MINISEARCH_BUILD=/tmp/build_08 TQDM_DISABLE=1 \
        OMP_NUM_THREADS=1 python /tmp/h/sweep08.py INIT [quick|tuning|rl]

Trained on encyclopedia 250 with seed 500, asked 180 questions about development encyclopedia 150.
quick   tuning alone, no GRPO: 5 settings x 3 arms, about 25 CPU-seconds each (plus about 90 for the seed's pool, once)
tuning  tuning and GRPO: the same 15, about 70 CPU-seconds each
rl      rate of GRPO 3e-4, 6e-4, 1.2e-3 for plan, no_plan and grpo: 9 runs
What is chosen by: greedy exact match of each arm by itself. What has to hold first: broken < .125 for all, the_plan > .5 (at the start of GRPO).
Writes /tmp/h/sweep08_INIT.jsonl, a line a run; `RATE`, `EPOCHS` of the chapter are the middle of the grid.
"""
import ast, json, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from minisearch import chapters
from minisearch.agents.study import groups_of
from minisearch.recorder import Recorder

init, what = int(sys.argv[1]), (sys.argv[2:] or ["quick"])[0]
page = chapters.load("08_plan")
S = page.PlanSettings.of("toy")
names = {"profile": "toy", "seed": 500, "world_seed": 50, "init_seed": init, "data": "", "service": "",
         "settings": S, "record": Recorder(Path(f"/tmp/h/sw08_{init}")), "MODULES": {}}
for name, value in names.items():
    setattr(page, name, value)
for node in ast.parse(Path(page.__file__).read_text()).body:
    t = getattr(node, "target", None) or getattr(node, "targets", [None])[0]
    if getattr(t, "id", "") in ("READY", "RECIPES"):
        exec(compile(ast.Module([node], []), "x", "exec"), vars(page))
page.use_threads(1); page.quiet()
base = page.open_task()
away, library = page.open_world("blank", 150)
test = away.questions(180, range(2, S.longest + 1), seed=0)
task = replace(base, test=test, test_library=library, test_passages=away.corpus)
out = open(f"/tmp/h/sweep08_{init}.jsonl", "a")

def run(arm, trained, **over):
    t, page.settings = time.process_time(), replace(S, **over)
    recipe, lm = page.RECIPES[arm], page.starting_model()
    if recipe.lessons:
        page.tune(lm, page.lessons_of(arm, lm, recipe), page.settings.tuning_rate, page.settings.epochs, 500)
    found = {}
    if trained:
        extra = page.reward_of(lm, recipe)
        module = page.train(lm, task, page.starved(recipe), 500, **extra)
        log = extra["extra_advantage"].log
        found |= {f"{k}_first": float(np.mean([r[k] for r in log[:2]])) for k in ("planned", "formed", "broken", "the_plan", "right")}
        found |= {f"{k}_last": float(np.mean([r[k] for r in log[-5:]])) for k in ("planned", "formed", "the_plan", "right", "kl", "early_entropy")}
    for how, temperature in {"greedy": 0.0, "sampled": 1.0}.items():
        cols = page.columns_of(page.answers(lm, task, page.settings.attempts(temperature)), task)
        for k in ("em", "formed", "broken", "planned", "the_plan", "in_order", "searches"):
            found[f"{k}_{how}"] = float(cols[k].mean())
        groups = groups_of(task)
        for h in np.unique(groups):
            found[f"em_{how}/{h}"] = float(cols["em"][groups == h].mean())
            found[f"formed_{how}/{h}"] = float(cols["formed"][groups == h].mean())
            found[f"the_plan_{how}/{h}"] = float(cols["the_plan"][groups == h].mean())
    row = {"arm": arm, "trained": trained, **over, "cpu": round(time.process_time() - t, 1), **{k: round(v, 3) for k, v in found.items()}}
    print(json.dumps(row), flush=True); out.write(json.dumps(row) + "\n"); out.flush()

middle = {"tuning_rate": S.tuning_rate, "epochs": S.epochs}
five = [{}, {"tuning_rate": S.tuning_rate * 0.3}, {"tuning_rate": S.tuning_rate * 3}, {"epochs": max(1, S.epochs // 2)}, {"epochs": S.epochs * 2}]
if what in ("quick", "tuning"):
    for over in five:
        for arm in ("plan", "no_plan", "distilled"):
            run(arm, what == "tuning", **(middle | over))
else:
    for rate in (S.learning_rate * 0.5, S.learning_rate, S.learning_rate * 2):
        for arm in ("plan", "no_plan", "grpo"):
            run(arm, True, learning_rate=rate)
print("SWEEPDONE")
