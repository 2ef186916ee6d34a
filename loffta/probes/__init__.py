"""Probes: heads that need no training loop, from batches of features alone.

In:  features [B, K] of any tap, float32 on any device, and their targets, batch by batch, each image once a pass.
Out: votes of neighbours (`knn`), or a `LinearMap` from features to logits (`ncm`, `ridge`, `logreg`). Nothing here
reads: whoever has the batches feeds as many probes with each of them as are wanted, so that one read serves all taps,
folds and sets of labels.

    knn      a pass over the test images, then one over the training images; memory: the former, and their neighbours
    ncm      one pass; memory: a vector per class
    ridge    one pass, whatever the strengths and subsets of taps; memory: K x K
    logreg   the pass of ridge, then a pass per iteration; memory: K x (K + 20 C)

Folds and few labels are rows left out of a batch before it is added. What was added can be added up: folds are moments
each, and those of all the others their sum.
"""
