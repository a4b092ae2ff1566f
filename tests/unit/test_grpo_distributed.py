"""Two gloo processes train the weights of one process that has all the questions.

Run as a script, this file is what the two processes execute.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from grpo_example import searching_lm, train

from minisearch.agents.grpo import GRPOConfig
from minisearch.profiles import Settings

STEPS = 3


def further(step, part):
    return (part.logits.square().mean(1) * part.weights).sum()


# In the last case one process has the questions of one dead group at each step.
CASES = {
    "token": {"config": GRPOConfig(group=4)},
    "sequence": {"config": GRPOConfig(group=4, average="sequence")},
    "further terms": {"config": GRPOConfig(group=4, kl=0.3), "extra_loss": further},
    "dead": {"config": GRPOConfig(group=4, minibatches=1), "questions": [0, 1]},
}


def run(devices):
    """Of every case the weights after three steps, and the history."""
    found = {}
    for name, changes in CASES.items():
        settings = Settings.of("smoke", devices=devices, strategy="ddp" if devices > 1 else "auto")
        reference = searching_lm().model if changes["config"].kl else None
        module = train(
            settings=settings, steps=STEPS, learning_rate=0.001, reference=reference, **changes
        )
        weights = torch.cat([p.detach().flatten() for p in module.model.parameters()])
        rows = [{k: v for k, v in r.items() if "seconds" not in k} for r in module.history.rows]
        found[name] = {"weights": weights, "rows": rows}
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of one process and of each of two."""
    out = tmp_path_factory.mktemp("results")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return run(devices=1), [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_the_weights_of_one(case, results):
    single, double = results[0][case], [result[case] for result in results[1]]
    start = torch.cat([p.detach().flatten() for p in searching_lm().model.parameters()])
    assert (single["weights"] - start).abs().max() > 1e-3
    assert torch.equal(double[0]["weights"], double[1]["weights"])
    torch.testing.assert_close(double[0]["weights"], single["weights"], rtol=0, atol=1e-5)
    assert len(single["rows"]) == STEPS
    for found, expected in zip(double[0]["rows"], single["rows"], strict=True):
        assert list(found) == list(expected)
        # A mean of two means, where processes wrote different numbers of tokens:
        assert found.pop("entropy") == pytest.approx(expected.pop("entropy"), abs=0.2)
        np.testing.assert_allclose(list(found.values()), list(expected.values()), atol=1e-4)
    if case == "dead":
        assert all(0.5 <= row["dead groups"] < 1 for row in single["rows"])


def worker(rank, port, out):
    os.environ |= {
        "LOCAL_RANK": str(rank), "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.save(run(devices=2), Path(out) / f"{rank}.pt")


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked after the imports, which take longer than the training; torchrun would repeat them.
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=worker, args=(r, port, sys.argv[1])) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=250)
        process.kill()  # where it waits for another that asks for something else
    sys.exit(any(process.exitcode != 0 for process in processes))
