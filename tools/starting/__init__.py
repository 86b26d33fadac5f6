"""For ``tools/new_backport.py``: the stubs of a backport, and where they go."""
