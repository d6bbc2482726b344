"""Focal stacks: optics, rendered scenes, readers, and what trainings are given."""
