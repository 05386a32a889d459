"""Every test and docstring example starts from the same global random state, whatever ran before it in the process."""

import random

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- libraries draw from the global generator
    torch.manual_seed(0)
