"""Distil the reference into a student: the stage and its methods."""
