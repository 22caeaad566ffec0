"""What every test starts from, however the tests themselves were started."""

from __future__ import annotations

import signal

import torch

# Small operations on busy cores wait for threads longer than they compute.
torch.set_num_threads(1)

# A job in the background of a script ignores the interrupt key; the tests of interruptions need the usual handlers.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
