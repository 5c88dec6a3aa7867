import os

import pytest
import torch

# The networks of the tests are too small for more to help, and tests run beside each other.
torch.set_num_threads(1)
os.environ.setdefault('OMP_NUM_THREADS', '1')  # of the processes that tests start


@pytest.fixture
def trusted(monkeypatch):
    """Load a checkpoint of a training also where torch cannot be told what is harmless (docs/stacks.md)."""
    if not hasattr(torch.serialization, 'add_safe_globals'):
        monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)
        monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
