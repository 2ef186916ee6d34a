"""The rival of `loffta train` in start.py: a linear probe as a user of torch alone would write it.

Run:     python pipelines/benchmarks/bare_train.py FEATURES.npz EPOCHS
The file holds `features` [N, K], `labels` [N] and `test`, whether an image is for the test; the recipe is that of
loffta's head `linear`.
"""

import math
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

BATCH, LR, DECAY, WARMUP = 64, 1e-3, 1e-4, 0.1

path, epochs = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)  # for steps as small as these the fastest
torch.manual_seed(0)
with np.load(path) as held:
    features, labels = torch.from_numpy(held["features"]).float(), torch.from_numpy(held["labels"])
    test = torch.from_numpy(held["test"])
x, y = features[~test], labels[~test]
head = nn.Sequential(nn.BatchNorm1d(x.shape[1], affine=False), nn.Linear(x.shape[1], int(labels.max()) + 1))
optimizer = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=DECAY, fused=True)
total = epochs * math.ceil(len(x) / BATCH)


def factor(step: int) -> float:
    """Linear warm-up, then half a cosine."""
    warm = WARMUP * total
    return (step + 1) / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2


schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
for _ in range(epochs):
    for rows in torch.randperm(len(x)).split(BATCH):
        loss = F.cross_entropy(head(x[rows]), y[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
with torch.inference_mode():
    print(float((head.eval()(features[test]).argmax(dim=1) == labels[test]).float().mean()))
