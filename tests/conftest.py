"""What every test starts from, however the tests themselves were started."""

import signal

import pytest
import torch

# The tensors are tiny and the tests share the cores: waking a second thread costs far more than it brings.
torch.set_num_threads(1)

# A job in the background of a script ignores the interrupt key; the tests of interruptions need the usual handlers.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
