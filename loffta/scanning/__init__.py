"""Which backbone, which layer: every tap of a cache measured with heads that need no training loop.

In:  an open cache and a ScanConfig.   Out: a Scan, a row for each layer and head, with intervals and ranks. Each byte
is read once: all taps of an array come from one read, and what the heads need of it is gathered in that pass. Called by
`loffta scan`; `reporting` writes what comes out.

    plan      which images are fitted, chosen and tested on: a trial, one for each fold, or one for each draw
    layers    the vectors of a tap, as columns of a batch
    probing   what each head gathers of a layer, and what it predicts
    logistic  the head that passes over the training images again and again
    scan      the driver
    results   scores, intervals and ranks
"""
