"""The two halves of a version of a store: the items' vectors, and the ranking model."""
