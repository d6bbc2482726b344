"""Android phones through adb and executor_runner."""

from pocketfocus.mobile_harness.android.runner import connect

__all__ = ["connect"]
