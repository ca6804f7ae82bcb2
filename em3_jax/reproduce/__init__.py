"""The paper's tables by one command. 1-7: `tables` says what to run, `runs` runs it, `report` writes the pages. 10: `retrieval`."""
