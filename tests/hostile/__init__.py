"""Damaged and malicious inputs, drawn by hypothesis: refused with our own errors, or read correctly."""
