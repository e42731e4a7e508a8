"""Weights of other programs: read, turned into runs, and proven to be the same; and written."""
