"""Apple's devices: this Mac, and a connected iPhone."""
