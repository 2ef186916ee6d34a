"""Trained heads measured on a split of a cache.

In:  a run.   Out: results.json and predictions.parquet in it. Called by `loffta evaluate`, at the end of a training,
and by `online`, whose logits come from fresh images and are measured by the same code.
"""
