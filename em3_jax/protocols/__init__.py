"""Questions to trained runs that need more than a split scored: what inputs are worth, what misses or is new."""
