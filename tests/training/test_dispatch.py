"""Several steps in one call; apart from test_train.py, for its bit-identity is one of two programs as LLVM optimises them."""

import numpy as np
import pytest

from em3_jax import train
from tests.small_runs import check_same_state, records, small


@pytest.fixture(scope="module")
def single(planted, tmp_path_factory):
    """A run of single steps."""
    directory = tmp_path_factory.mktemp("runs") / "single"
    train.train(small(planted), directory)
    return directory


@pytest.mark.parametrize("size", [2, 3])
def test_several_steps_a_dispatch_are_the_single_steps_bit_for_bit(planted, single, tmp_path, size):
    """Windows end groups: of 2 steps, so that groups of 2 fill them, and those of 3 are never whole.

    The state is meant: of what a log line reports, such as a norm over all rows, the sum may be rounded otherwise.
    """
    train.train(small(planted, train__steps_per_dispatch=size), tmp_path)
    check_same_state(planted, single, tmp_path)
    for one, other in zip(records(single), records(tmp_path), strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-6)
