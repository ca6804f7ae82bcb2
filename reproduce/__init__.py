"""The paper's tables by one command: `tables` says what to run, `runs` runs it, `report` writes; table 10 is `retrieval`."""
