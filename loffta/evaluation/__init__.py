"""Trained heads measured on a split of a cache."""
