"""Stable Video Diffusion rewritten for phones: the same function in operators that phones take."""
