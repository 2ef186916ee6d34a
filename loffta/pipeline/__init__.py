"""A pipeline file as stages, and the stages as processes of their own.

In:  YAML.   Out: the command lines of its stages, run one after the other. Called by `loffta_pipelines.run` and
`loffta demo`.
"""
