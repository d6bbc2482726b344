"""A student becomes files that phones run: one module per target, one file per precision."""
