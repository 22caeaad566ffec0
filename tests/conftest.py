"""Set-up for all tests."""

import pytest
import torch

# The tensors are tiny and the tests share the cores: waking a second thread costs far more than it brings.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
