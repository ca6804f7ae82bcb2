"""Questions that take more than a split scored: what inputs are worth, what misses, what is new."""
