"""From a torch model to a bundle; needs torch and diffusers."""
