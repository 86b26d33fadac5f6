"""Changes of ours, which upstream does not have. Each has a report in ``docs/upstream``."""
