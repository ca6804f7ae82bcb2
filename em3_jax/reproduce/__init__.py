"""The paper's tables 1-7 on any dataset by one command: `tables` says what to run, `runs` runs it, `report` writes the pages."""
