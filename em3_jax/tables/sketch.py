"""How often ids were seen that have no row yet, in fixed memory: a count-min sketch that forgets.

Cormode and Muthukrishnan, An Improved Data Stream Summary: The Count-Min Sketch and its Applications, 2005, with the conservative
update of Estan and Varghese, 2002. Ids of the past would fill it for ever, so its counts are halved now and then, as in
Einziger, Friedman and Manes, TinyLFU: A Highly Efficient Cache Admission Policy, 2017, section 3.3.
"""

import numpy as np

from em3_jax.core.draws import hash_words

DEPTH = 4
LARGEST = 255
"""The largest count."""


class CountMin:
    """Counts of keys, never too small until they are halved: after as many additions as a line has counters.

    Args:
      width: of the four lines; rounded up to a power of two.

    >>> import numpy as np
    >>> from em3_jax.tables.sketch import CountMin
    >>> seen = CountMin(1000)
    >>> [seen.add(np.array(keys, np.uint64)).tolist() for keys in ([5, 6], [5], [5, 7])]
    [[1, 1], [2], [3, 1]]
    """

    def __init__(self, width: int):
        self._mask = (1 << max(width - 1, 1).bit_length()) - 1
        self.counters = np.zeros((DEPTH, self._mask + 1), np.uint8)
        self.added = 0  # since the last halving

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """[n] i64 how often each of the keys was added, this time among them.

        Args:
          hashes: [n] u64 of distinct keys.
        """
        if self.added + len(hashes) > self._mask:
            self.counters >>= 1
            self.added = 0
        self.added += len(hashes)
        places = [(hash_words(line, hashes) & np.uint64(self._mask)).astype(np.int64) for line in range(DEPTH)]
        before = np.min([line[place] for line, place in zip(self.counters, places, strict=True)], axis=0)
        count = np.minimum(before.astype(np.int64) + 1, LARGEST)
        for line, place in zip(self.counters, places, strict=True):
            np.maximum.at(line, place, count.astype(np.uint8))
        return count
