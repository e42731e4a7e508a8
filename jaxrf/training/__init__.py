"""Training of a field: from pixels and losses to checkpoints and logs.

Its configuration, batches of pixels, losses, optimizers and schedules, steps, stages and the loop;
callbacks, checkpoints, logs and the folder of a run.
"""
