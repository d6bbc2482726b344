"""Train the reference; distil it into the one-step student."""
