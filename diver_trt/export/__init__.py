"""From a diffusers model to a bundle: needs torch and diffusers, and nothing of the runtime imports it."""
