"""Studies that compare fields, settings and machines: the benchmark and the six experiments."""
