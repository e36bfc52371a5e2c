"""What runs the networks of a bundle."""
