"""Stage two: heads trained side by side on one read of the features.

In:  a TrainConfig.   Out: a run. `train` is the driver, called by `loffta train`; `fit` is the loop, `search` tries
settings first, `bench` tells where the time goes.
"""
