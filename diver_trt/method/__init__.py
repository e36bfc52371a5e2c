"""DIVER as equations: pure numpy, a source on every function.

Latents are NCHW float32. Steps count down from `K`, the noisiest, to 1; tables over steps are
ascending, so step `k` is row `k - 1`.
"""
