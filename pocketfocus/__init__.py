"""Distil, quantize, export, prove and measure Learn2Refocus for phones."""

__version__ = "0.1.0"
