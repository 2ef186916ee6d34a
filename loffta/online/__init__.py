"""Images straight through a backbone into a head: the one package that joins both halves.

Each module is imported by the command that needs it: predict, evaluate --online, train --online, verify --recompute.
"""
