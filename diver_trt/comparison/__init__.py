"""Holding engines against the model they came from: needs torch, and nothing of the runtime imports it."""
