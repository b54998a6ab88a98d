"""Damaged and hostile inputs, drawn by hypothesis: an error in plain words of our own, or the right result."""
