"""Two gloo processes give the loss curve of one process with the same global batch.

Run as a script, this file is what the two processes execute.
"""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from minisearch.lit import Batches, Module, Optimisation, fit
from minisearch.objectives import gather_rows, in_batch_softmax, same_items
from minisearch.profiles import Settings

WORDS, ITEMS, PAIRS, BATCH = 40, 30, 64, 16


class Encoder(Module):
    """A dual encoder that is one bag of words, with in-batch and random negatives."""

    def __init__(self, gather):
        super().__init__()
        torch.manual_seed(0)
        self.tower = torch.nn.EmbeddingBag(WORDS, 8)
        self.gather = gather_rows if gather else lambda rows: rows

    def loss(self, batch):
        queries = self.gather(self.tower(batch["query"]))
        items = self.gather(self.tower(batch["title"]))
        negatives = self.gather(self.tower(batch["negative"]))
        same = same_items(self.gather(batch["item"]), self.gather(batch["negative_item"]))
        return in_batch_softmax(queries, items, negatives, same_item=same)


def train(devices, gather=True):
    """The losses of three epochs, and the sum of the weights afterwards."""
    random = torch.Generator().manual_seed(0)
    titles = torch.randint(0, WORDS, (ITEMS, 5), generator=random)
    item = torch.randint(0, ITEMS, (PAIRS,), generator=random)
    pairs = {"query": titles[item, :2], "title": titles[item], "item": item}
    pools = {"negative": titles, "negative_item": torch.arange(ITEMS)}
    module = Encoder(gather)
    settings = Settings.of("smoke", devices=devices, strategy="ddp" if devices > 1 else "auto")
    fit(module, Batches(pairs, BATCH, seed=1, pools=pools), settings, Optimisation(0.1), epochs=3)
    return [*module.history.column("loss")[1].tolist(), module.tower.weight.sum().item()]


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(tmp_path):
    out = tmp_path / "curves.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    curves = json.loads(out.read_text())

    single = train(devices=1)
    assert len(single) == 3 * PAIRS // BATCH + 1
    assert single[-2] < 0.7 * single[0]
    np.testing.assert_allclose(curves["gathered"], single, atol=1e-4)
    # With negatives of its own slice only, a process trains another objective:
    assert abs(curves["local"][0] - single[0]) > 0.1


def worker(rank, port, out):
    os.environ |= {
        "LOCAL_RANK": str(rank), "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    curves = {"gathered": train(devices=2), "local": train(devices=2, gather=False)}
    if rank == 0:
        Path(out).write_text(json.dumps(curves))


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
        process.join()
    sys.exit(max(abs(process.exitcode) for process in processes))
