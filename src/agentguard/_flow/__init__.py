"""The flow: what happens in which order, and nothing of how."""
