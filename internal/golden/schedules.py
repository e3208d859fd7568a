"""Learning rates of transformers' get_scheduler at every step.

    schedules.py FILE      writes the JSON that train/schedule_test.go reads
"""
import json
import sys

import torch
from transformers import get_scheduler

BASE = 2e-4
CASES = [  # name, warm-up, steps
    ("constant", 0, 10),
    ("constant_with_warmup", 4, 10),
    ("linear", 0, 10),
    ("linear", 3, 17),
    ("linear", 5, 5),
    ("cosine", 0, 10),
    ("cosine", 3, 17),
    ("cosine", 1, 100),
]


def rates(name, warmup, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    out = []
    for _ in range(total + 1):  # the last one is after the end
        out.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return out


cases = [dict(name=n, warmup=w, total=t, base=BASE, rates=rates(n, w, t)) for n, w, t in CASES]
with open(sys.argv[1], "w") as f:
    f.write("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
