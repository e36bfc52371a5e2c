"""A cluster is divided into workers."""

from __future__ import annotations

import pytest

from diver_trt.errors import EngineError, UsageError
from diver_trt.ray.plan import WorkerPlan, plan_workers

GPUS = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0, "memory": 1e9}]


@pytest.mark.parametrize(
    ("engine", "workers", "nodes", "count", "cpus", "gpus"),
    [
        ("auto", None, GPUS, 3, 1, 1),
        ("rtx", 2, GPUS, 2, 1, 1),
        ("rtx", None, [{"CPU": 1.0, "GPU": 8.0}, {"CPU": 4.0}], 8, 0, 1),
        ("auto", None, [{"GPU": 2.0}], 2, 0, 1),
        ("onnx", 4, GPUS, 4, 4, 0),
        ("onnx", 5, GPUS, 5, 4, 0),
        ("onnx", 6, GPUS, 6, 3, 0),
        ("auto", 2, [{"CPU": 2.0}], 2, 1, 0),
        ("auto", 1, [{"CPU": 8.0}, {}], 1, 8, 0),
        ("openvino", 2, [{"CPU": 3.0}, {"CPU": 1.0}], 2, 1, 0),
    ],
)
def test_workers_share_gpus_or_cores(
    engine: str,
    workers: int | None,
    nodes: list[dict[str, float]],
    count: int,
    cpus: int,
    gpus: int,
) -> None:
    assert plan_workers(engine, workers, nodes) == WorkerPlan(count, cpus, gpus)


@pytest.mark.parametrize(
    ("engine", "workers", "nodes", "error", "text"),
    [
        ("rtx", None, [{"CPU": 8.0}], EngineError, "engine rtx needs a GPU, and Ray has none"),
        ("auto", None, [{"CPU": 8.0}], UsageError, "its 8 cores, such as --workers 2"),
        ("onnx", None, GPUS, UsageError, "no GPU that engine onnx would use"),
        ("auto", 4, GPUS, UsageError, "workers is 4, and Ray has 3 GPUs"),
        ("onnx", 3, [{"CPU": 2.0}], UsageError, "workers is 3, and Ray has 2 cores"),
        ("onnx", 1, [], UsageError, "workers is 1, and Ray has 0 cores"),
    ],
)
def test_what_a_cluster_cannot_give_is_refused(
    engine: str,
    workers: int | None,
    nodes: list[dict[str, float]],
    error: type[Exception],
    text: str,
) -> None:
    with pytest.raises(error, match=text):
        plan_workers(engine, workers, nodes)


def test_a_plan_in_words() -> None:
    assert str(WorkerPlan(1, 1, 0)) == "1 worker with 1 core"
    assert str(WorkerPlan(2, 4, 0)) == "2 workers with 4 cores each"
    assert str(WorkerPlan(3, 1, 1)) == "3 workers with 1 GPU each"
