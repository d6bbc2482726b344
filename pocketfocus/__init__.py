"""Distil, quantize, export, prove and measure Learn2Refocus for phones."""

from pocketfocus.run import telemetry

telemetry.switch_off()  # here, where every process of ours comes by before anything is imported

__version__ = "0.1.0"
