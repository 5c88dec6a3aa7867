import pytest
import torch

torch.set_num_threads(1)  # the networks of the tests are too small for more to help


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
