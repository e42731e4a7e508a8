"""Rendering of cameras with a trained field, for scores, videos and live viewing, and metrics."""
