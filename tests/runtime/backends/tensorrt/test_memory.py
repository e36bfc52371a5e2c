"""The memory plan: phases, budgets, and the words when nothing fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from diver_trt.contract import NETWORKS, NetworkName
from diver_trt.errors import DeviceMemoryError, UsageError
from diver_trt.files import FileRecord
from diver_trt.runtime.backends.tensorrt.memory import (
    choose_memory_plan,
    format_bytes,
    format_sum,
    parse_bytes,
    plan_memory,
)
from diver_trt.runtime.backends.tensorrt.plans import Plan
from diver_trt.runtime.backends.tensorrt.sidecar import Memory, Profile, Sidecar
from tests.stand_in import MACHINE

MB = 10**6
WEIGHTS: dict[NetworkName, int] = {
    "encoder": 68,
    "conditioner": 457,
    "denoiser": 893,
    "decoder": 99,
}
SCRATCH: dict[NetworkName, int] = {"encoder": 59, "conditioner": 1, "denoiser": 18, "decoder": 92}


def plan(batch: int) -> Plan:
    """A plan with round figures like DiT-XL/2's: only scratch and buffers grow with the batch."""
    sidecars = {
        name: Sidecar(
            network=name,
            precision="fp16",
            onnx_sha256="",
            weights_sha256=None,
            engine=FileRecord(f"{name}.engine", 1, ""),
            built_on=MACHINE,
            compute_capabilities=("sm86",),
            profile=Profile(batch, batch, batch),
            memory=Memory(
                weights_bytes=WEIGHTS[name] * MB,
                persistent_bytes=1,
                activation_bytes=SCRATCH[name] * batch * MB,
                io_bytes=batch * MB,
            ),
            dtypes={},
            workspace_bytes=None,
            build_seconds=1,
            skipped_tactics=0,
            tool_version="0",
        )
        for name in NETWORKS
    }
    return Plan(Path(f"b{batch}"), sidecars)


def test_resident_networks_share_the_largest_scratch() -> None:
    memory = plan_memory(plan(1), "resident")
    assert {phase.scratch_bytes for phase in memory.phases} == {92 * MB}
    assert memory.peak_bytes == (68 + 457 + 893 + 99 + 92 + 4) * MB + 4


def test_phased_networks_are_alone() -> None:
    memory = plan_memory(plan(1), "phased")
    assert [phase.total_bytes for phase in memory.phases] == [
        (68 + 59 + 1) * MB + 1,
        (457 + 1 + 1) * MB + 1,
        (893 + 18 + 1) * MB + 1,
        (99 + 92 + 1) * MB + 1,
    ]
    assert memory.peak_bytes == 912 * MB + 1


@pytest.mark.parametrize(
    ("batches", "budget", "chosen"),
    [
        ((1, 8, 4), None, (8, "resident")),
        # A larger batch beats staying resident.
        ((1, 4, 8), 1_700 * MB, (8, "phased")),
        ((1,), 1_700 * MB, (1, "resident")),
    ],
)
def test_the_largest_batch_that_fits_is_chosen(
    batches: tuple[int, ...], budget: int | None, chosen: tuple[int, str]
) -> None:
    memory = choose_memory_plan(map(plan, batches), budget)
    assert (memory.batch, memory.residency) == chosen


@pytest.mark.parametrize(
    ("batches", "images", "chosen"),
    [
        ((1, 4, 8), 4, 4),
        ((4, 8), 100, 4),
        ((4, 8), 80, 8),
        ((1, 8), 1, 1),
        ((1, 8), 10, 1),
        # A single image more does not end large batches.
        ((1, 8), 101, 8),
        ((1, 8), 1001, 8),
    ],
)
def test_few_images_do_not_want_a_large_batch(
    batches: tuple[int, ...], images: int, chosen: int
) -> None:
    assert choose_memory_plan(map(plan, batches), None, images=images).batch == chosen


def test_the_limit_that_is_short_is_named() -> None:
    with pytest.raises(DeviceMemoryError, match="nothing fits the device's free memory, 400 MB"):
        choose_memory_plan([plan(1)], 500 * MB, free_bytes=400 * MB)
    with pytest.raises(DeviceMemoryError, match="nothing fits a memory budget of 500 MB"):
        choose_memory_plan([plan(1)], 500 * MB, free_bytes=600 * MB)


def test_the_smallest_budget_that_would_do_is_named_and_does() -> None:
    plans = [plan(1), plan(8)]
    with pytest.raises(
        DeviceMemoryError,
        match=(
            r"nothing fits a memory budget of 500 MB: "
            r"the smallest that would do is 913 MB \(batch 1, phased\)\. Raise the budget, or "
            r"export the model in fewer bits"
        ),
    ):
        choose_memory_plan(plans, 500 * MB)
    assert choose_memory_plan(plans, parse_bytes("913MB")).residency == "phased"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2 * 10**9),
        ("512 MB", 512 * 10**6),
        ("1.5GiB", 3 * 2**29),
        ("100b", 100),
        (" 4gb ", 4 * 10**9),
        ("10TB", 10**13),
        ("1TiB", 2**40),
        ("1e9B", 10**9),
        ("1B", 1),
    ],
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GB",
        "4",
        "1e9",
        "-1GB",
        "4XB",
        "nanGB",
        "infGB",
        "1e99GB",
        "0",
        "0MB",
        "0.5B",
        "1000000TB",
    ],
)
def test_other_texts_are_no_sizes(text: str) -> None:
    expected = r"of 1B or more and less than 1,000,000TB"
    with pytest.raises(
        UsageError, match=rf"^--workspace is {text!r}; expected a size .*{expected}"
    ):
        parse_bytes(text, "--workspace")


def test_sizes_are_rounded_up_so_that_they_are_enough() -> None:
    assert format_bytes(1_000_001) == "2 MB"


@pytest.mark.parametrize(
    "sizes",
    [
        (4_250_000, 9_250_000, 250_000, 250_000),
        (0, 0, 0, 0),
        (1, 1, 1, 1),
        (10**12 + 1, 0, 99_999, 50_000),
        (33_333, 33_333, 33_333, 1),
        (100_000, 200_000, 300_000, 400_000),
    ],
)
def test_a_sum_adds_up_as_it_is_printed(sizes: tuple[int, ...]) -> None:
    def tenths(text: str) -> int:
        return round(float(text.removesuffix(" MB").replace(",", "")) * 10)

    total, parts = format_sum(sizes)
    assert tenths(total) == sum(map(tenths, parts)) == -(-sum(sizes) // 100_000)
    for size, part in zip(sizes, parts, strict=True):
        assert abs(tenths(part) * 100_000 - size) < 100_000
