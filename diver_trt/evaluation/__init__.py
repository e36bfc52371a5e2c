"""`diver-trt evaluate`: how well networks learn from a set of images, measured on real ones."""
