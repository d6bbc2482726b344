"""The networks: the reference, the student, and how they are loaded."""
