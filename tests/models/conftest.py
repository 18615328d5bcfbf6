"""What every test of the workshop shares."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny tensors gain nothing from a second thread, and sums in one order are the same sums."""
    torch.set_num_threads(1)
