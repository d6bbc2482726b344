"""Where a file runs: one module a device, all behind `pocketfocus.mobile_harness.device.Device`."""
