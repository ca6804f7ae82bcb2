"""What a notebook needs of the package: a config made into an experiment, its steps, and what its model looks at."""
