"""What a head is trained on: which arrays and taps, which rows, and what is to be learnt of them.

In:  an open cache, `--features`, `--train-on` and the like.   Out: Features for `feed`, rows, targets. Called by
`train`, `evaluate` and `bench`; `command_lines` is for errors, which name the command that adds what is missing.
"""
