"""Latency, memory, size and fidelity of files, and the report."""
