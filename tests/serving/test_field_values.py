"""Field values of requests: numbers that a vocabulary writes in a form which no number has."""

import numpy as np

from em3_jax.core.fields import UNKNOWN
from em3_jax.serving.field_values import FieldValues

VOCABULARY = ["4.50", "1.10", "1.1", "2.10", "2.100", "007", "5"]


def test_numbers_find_what_is_written_with_zeros_at_its_end():
    field = FieldValues("context field 'price'", VOCABULARY, len(VOCABULARY) + 2)

    def values(*asked) -> list[str | None]:
        ids, known = field.ids(asked)
        assert (ids[~known] == UNKNOWN).all()
        return [VOCABULARY[k - 2] if there else None for k, there in zip(ids, known, strict=True)]

    assert values(4.5, np.float32(4.5), "4.50") == ["4.50"] * 3
    assert values(1.1, "1.10") == ["1.1", "1.10"], "the number's own form goes first"
    assert values(2.1, 7, "4.5", True) == [None] * 4, "two values of one number; names; texts are what they say"
    assert values(5.0, "5.0", 5) == ["5"] * 3
