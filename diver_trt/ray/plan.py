"""How many workers a cluster gets, and what each of them takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diver_trt.counted import counted
from diver_trt.errors import EngineError, UsageError
from diver_trt.runtime.backends import AUTO, BACKENDS


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """What the workers take of a cluster.

    Attributes:
        count: Number of workers.
        cpus: Cores of each; 0 for workers with a GPU where a node has more GPUs than cores.
        gpus: GPUs of each, 0 or 1.
    """

    count: int
    cpus: int
    gpus: int

    def __str__(self) -> str:
        each = "" if self.count == 1 else " each"
        share = "1 GPU" if self.gpus else counted(self.cpus, "core")
        return f"{counted(self.count, 'worker')} with {share}{each}"


def plan_workers(
    engine: str, workers: int | None, nodes: Sequence[Mapping[str, float]]
) -> WorkerPlan:
    """Divide a cluster: a GPU for each worker, or on CPUs as many cores as all of them can have.

    Args:
        engine: The engine, or `"auto"`, which takes the GPUs if there are any.
        workers: Number of workers; None is one for each GPU.
        nodes: The `CPU` and `GPU` of each node.

    Raises:
        UsageError: If there are fewer GPUs or cores than workers, or if there is no GPU and no
            number of workers is given.
        EngineError: If the engine needs a GPU and there is none.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cores = [int(node.get("CPU", 0)) for node in nodes]
    on_gpus = gpus > 0 if engine == AUTO else BACKENDS[engine].gpu
    if on_gpus and not gpus:
        raise EngineError(
            f"engine {engine} needs a GPU, and Ray has none; choose an engine that runs on the CPU"
        )
    if workers is None and not on_gpus:
        raise UsageError(
            f"Ray has no GPU that engine {engine} would use; choose how many workers share its "
            f"{counted(sum(cores), 'core')}, such as --workers {max(1, sum(cores) // 4)}"
        )
    count = workers or gpus
    if count > (most := gpus if on_gpus else sum(cores)):
        raise UsageError(
            f"workers is {count}, and Ray has {most} {'GPUs' if on_gpus else 'cores'}; expected "
            f"at most {most}"
        )
    if on_gpus:
        # With a core each, some workers would never start on a node with fewer cores than GPUs.
        enough = all(node.get("CPU", 0) >= node.get("GPU", 0) for node in nodes)
        return WorkerPlan(count, 1 if enough else 0, 1)
    # The largest share of which `count` fit: a worker cannot have cores of two nodes.
    share = next(
        share for share in range(max(cores), 0, -1) if sum(node // share for node in cores) >= count
    )
    return WorkerPlan(count, share, 0)
