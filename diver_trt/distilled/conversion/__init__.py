"""Everything that only `diver-trt convert` needs: writing one self-describing file.

Here, and nowhere else, ZCA whitening is undone and flax checkpoints are read. Nothing that
`recover` or `inspect` imports may import this package.
"""
