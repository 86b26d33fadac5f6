"""What ``tools/prove.py`` is made of: which source has to be proved, the runs, and the ledger."""
