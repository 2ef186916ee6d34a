"""Every test of this folder: few threads, and no waiting for a disk."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    monkeypatch.setattr(os, "fsync", lambda _: None)
    torch.set_num_threads(1)  # as in the child: another number gives other last bits
