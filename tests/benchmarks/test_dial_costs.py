"""What the dial has to cost, on small pictures: the head next to nothing beside the whole, and chunks a part of it."""

import pytest

from benchmarks import dial

# What is asked is memory, which is laid out before any code is made.
pytestmark = pytest.mark.quickly_compiled

SIDE, IMAGES = 96, 24


@pytest.mark.seconds(60)
def test_memory_of_the_head_and_of_chunks():
    module, params = dial.encoder()

    def temporaries(trains: str, chunk: int = 0) -> float:
        made = dial.step(module, params, trains, SIDE, chunk)
        return dial.compiled(made, IMAGES, SIDE)[1]["temporary MB"]

    whole = temporaries("all")
    assert temporaries("head") <= 0.2 * whole
    assert temporaries("all", 4) <= 0.5 * whole
