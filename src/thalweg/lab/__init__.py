"""The laboratory: the seeds' experiments by name. May import everything of thalweg; nothing there imports it."""
