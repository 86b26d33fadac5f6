"""The parts of ``tools/prove.py``: which source has to be proved, the runs, and the ledger."""
