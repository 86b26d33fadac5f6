"""The parts of `tools/upstream_tests.py`."""
