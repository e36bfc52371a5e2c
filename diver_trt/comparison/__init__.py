"""Comparing engines with the model they came from, or with each other."""
