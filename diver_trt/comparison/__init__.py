"""Holding engines against the model they came from, or against each other; nothing of the runtime imports it."""
