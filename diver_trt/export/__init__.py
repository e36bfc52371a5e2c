"""From a base model to a bundle: needs torch, and nothing of the runtime imports it."""
