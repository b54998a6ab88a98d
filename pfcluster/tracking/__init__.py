"""Experiment trackers. Training writes the run folder; a thread for each tracker copies what is new there."""
