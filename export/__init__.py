"""Networks become files that phones run: one package per target, one file per precision."""
