"""One thread for every test: as workers compute, and so that bits do not depend on the number of cores."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
