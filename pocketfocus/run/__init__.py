"""What every stage shares: files, manifest, processes, errors, progress, metrics."""
