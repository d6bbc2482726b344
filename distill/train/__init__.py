"""Training: the loop, its checkpoints and logs, and what the denoiser learns."""
