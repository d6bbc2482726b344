"""Recipes, calibration, and one module per toolchain that applies a recipe."""
