"""A pipeline file as stages, and the stages as processes of this machine or as jobs of a cluster.

In:  YAML.   Out: command lines, each with what it waits for, run by `local` or submitted by `slurm`. Called by `loffta
run` and `loffta demo`.
"""
