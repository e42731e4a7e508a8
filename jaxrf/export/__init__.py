"""Trained fields in files that are made for something else than training on."""
