"""Recovering on several GPUs or machines with Ray.

`opener` is what `diver-trt recover --ray` uses: `cluster` connects and `plan` divides, `worker` is
the process with an engine, `pool` hands out batches and replaces workers that die. `recover_batch`
is for pipelines of Ray Data, and does not import Ray.
"""

from diver_trt.ray.recover_batch import RecoverBatch as RecoverBatch

__all__ = ["RecoverBatch"]
