"""Where a file runs: one module a device, all behind `pocketfocus.benchmarks.device.Device`."""
