"""Train or fine-tune the reference, the teacher of all students."""
