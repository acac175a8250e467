"""Set-up of all tests: one thread, no network, quiet bars."""

import os


# Two threads on two busy cores are several times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402

from mcvd_diffusers.pipelines import scheduler_checks  # noqa: E402


torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def keep_global_random_state():
    """Library code must not depend on the global random stream, nor a test on what ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def forget_warnings():
    """What is said once a process is said once a test."""
    scheduler_checks._warn_once.cache_clear()


@pytest.fixture(autouse=True)
def forget_accelerator():
    """Accelerate's state is one for the process; each test starts without, whatever its fixtures have trained."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
