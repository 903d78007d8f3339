"""The real engine, for real: what a run allocates, measured and compared with the plan."""
