"""Features that a test draws without a generator are the same in every run."""

import pytest
import torch


@pytest.fixture(autouse=True)
def same_draws():
    torch.manual_seed(0)
