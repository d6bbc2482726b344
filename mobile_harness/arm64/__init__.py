"""ARM64 emulated by qemu: its set-up, the device, and what is executed inside."""

from pocketfocus.mobile_harness.arm64.emulator import connect

__all__ = ["connect"]
