"""Recovery on a device: numpy and one backend, never torch."""
