"""Changes that upstream has made, brought to older source."""
