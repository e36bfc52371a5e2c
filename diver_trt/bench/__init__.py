"""`diver-trt bench`: how fast a bundle runs here, and how far that is from the limit."""
