"""Memory and time of the loss over a large contrastive batch, in one process and in several (gloo, on the CPU).

    python tests/benchmarks/contrastive_batch.py [PAIRS] [PROCESSES]…

One JSON object for each number of PROCESSES (1 and 4 unless given): 512-dimensional vectors of PAIRS (32,768) pictures
and captions, through `full_batch_gradient`; `memory_gb` is what the largest process took beyond what it had before.
"""

import json
import os
import resource
import sys
import tempfile
import time
from multiprocessing import get_context

import torch
from torch import distributed, nn

from vlmkit.train.contrastive.gradcache import full_batch_gradient
from vlmkit.train.contrastive.losses import Objective

DIM = 512


def run(rank: int, world: int, pairs: int, folder: str) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    distributed.init_process_group("gloo", f"file://{folder}/met", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = nn.Module()
    model.logit_scale = nn.Parameter(torch.tensor(2.0))
    head = nn.Linear(DIM, DIM)
    sizes = [pairs // world] * world
    pictures, captions = torch.randn(2, pairs, DIM).split(sizes, 1)[rank].clone()
    objective = Objective(model, "infonce")
    before, begun = _peak_gb(), time.perf_counter()
    parts = [(head(pictures), head(captions)[None])]
    full_batch_gradient(lambda part, _: part, parts, objective, list(head.parameters()), sizes)
    seconds = time.perf_counter() - begun
    found: list[float] = [0.0] * world
    distributed.all_gather_object(found, _peak_gb() - before)
    if rank == 0:
        made = {"pairs": pairs, "processes": world, "memory_gb": round(max(found), 2), "seconds": round(seconds, 1)}
        print(json.dumps(made | {"all_logits_gb": round(4 * pairs**2 / 2**30, 2)}), flush=True)
    distributed.destroy_process_group()


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    pairs, *counts = [int(word) for word in sys.argv[1:]] or [32768]
    for world in counts or [1, 4]:
        with tempfile.TemporaryDirectory() as folder:
            runs = [get_context("spawn").Process(target=run, args=(r, world, pairs, folder)) for r in range(world)]
            for process in runs:
                process.start()
            for process in runs:
                process.join()


if __name__ == "__main__":
    main()
