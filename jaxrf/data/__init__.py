"""Data sets: a reader for each format, all of which return the same `Scene`."""
