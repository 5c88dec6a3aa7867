import os
import time

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


@pytest.fixture(autouse=True, scope='module')
def default_scope():
    """Leave the default scope of OpenMMLab's registries as it was: the modules of tests run in any order."""
    try:
        from mmengine.registry import DefaultScope
    except ImportError:
        yield
        return
    before = DefaultScope.get_current_instance()
    yield
    if before is not None and DefaultScope.get_current_instance() is not before:
        DefaultScope.get_instance(f'tests-{time.time_ns()}', scope_name=before.scope_name)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
