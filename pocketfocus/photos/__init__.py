"""A user's photos: read, refocused, and shown on a page."""
