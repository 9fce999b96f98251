"""The webhook relay."""
