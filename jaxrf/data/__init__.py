"""Data sets: every reader gives the same `Scene`."""
