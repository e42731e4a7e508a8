"""Radiance fields: each a frozen spec of numbers and pure functions of explicit parameters."""
