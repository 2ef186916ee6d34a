"""Faults of an image set, seen by its features: copies, leaks between splits, wrong labels, outliers.

`audit` is the driver. It reads, and writes nothing but the file of corrections that it is asked for.
"""
