"""Upstream's history, read from a clone. Nothing of it is checked out, imported or executed."""
