"""Does content pay? A ladder of models on a dataset, climbed on a budget, and what follows from it."""
