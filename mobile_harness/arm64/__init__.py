"""ARM64 emulated by qemu: its set-up, the device, and what is executed inside."""
