"""The MIL check: saved Core ML programs executed op by op with PyTorch, on any machine.

It checks what a program means, not Apple's kernels.
"""
