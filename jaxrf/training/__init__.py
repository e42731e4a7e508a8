"""Training of a field: its configuration, steps, stages, callbacks, checkpoints and logs."""
