"""One directory per training: its files, what they say, who writes there, and which images it knows.

In:  a folder, and what was trained.   Out: every name in it, and its small files as types. Called by `training`,
`evaluation`, `online` and `reporting`.
"""
