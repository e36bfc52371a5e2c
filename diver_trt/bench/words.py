"""A benchmark's figures in words, as the table on the terminal and the report show them."""

from __future__ import annotations

from collections.abc import Iterator

from diver_trt.bench.result import Result, Row
from diver_trt.bench.timing import LEAST_ROUNDS, WARM_UP_RUNS
from diver_trt.counted import counted

NOTHING = "-"


def heading(result: Result) -> Iterator[str]:
    """Yield what was measured, where, when and how, a line each."""
    plan, machine = result.plan, result.machine
    steps = counted(plan.recipe.start_step, "step")
    yield f"{plan.bundle.model_id} {plan.bundle.precision}, {steps}"
    threads = "".join(f", {name}={value}" for name, value in machine.threads.items())
    load = "unknown" if machine.load_average is None else f"{machine.load_average:.2f}"
    yield (
        f"{machine.date} UTC, {machine.system}, {counted(machine.cores, 'core')}{threads}, "
        f"load average before: {load}{f', {machine.gpu}' if machine.gpu else ''}"
    )
    yield ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    yield (
        f"{plan.seconds:g} s of measuring in alternating rounds, at least {LEAST_ROUNDS} each, "
        f"after up to {WARM_UP_RUNS} uncounted runs of everything"
    )
    for ceiling in result.ceilings:
        yield f"limit: {ceiling}, and a copy of each network's own bytes"


def milliseconds(seconds: float) -> str:
    """Return a time as text, with at least three digits: `0.880`, `16.0`, `1,204`."""
    return rate(seconds * 1e3)


def rate(per_second: float) -> str:
    """Return images per second as text, in the same form."""
    # From 99.95 on, `#.3g` gives `100.`, with a point at its end.
    return f"{per_second:,.0f}" if per_second >= 99.95 else f"{per_second:#.3g}"


def limit(row: Row) -> str:
    """Return how much of the limit a row reaches: `61% of the limit, bound by compute`."""
    if row.limit is None or row.of_limit is None:
        return NOTHING
    return f"{100 * row.of_limit:.0f}% of the limit, bound by {row.limit.bound}"


def short_limit(row: Row) -> str:
    """Return the same for a narrow column: `61%, compute`."""
    return limit(row).replace(" of the limit, bound by", ",")


def ratio(row: Row) -> str:
    """Return a row's speed against the first contestant's, with the quartiles of the rounds."""
    if row.ratio is None:
        return NOTHING
    return f"{row.ratio.median:.2f}x ({row.ratio.low:.2f} to {row.ratio.high:.2f})"


def memory(row: Row) -> str:
    """Return the peak memory of a row, on the host and, where there is one, on the device."""
    parts = [f"{row.host_bytes / 1e6:,.0f} MB"] if row.host_bytes is not None else []
    if row.device_bytes is not None:
        parts.append(f"{row.device_bytes / 1e6:,.0f} MB on the device")
    return ", ".join(parts) or NOTHING


def step_line(row: Row) -> Iterator[str]:
    """Yield how much of the limit a denoiser's step reaches, and how much of it is Python."""
    if row.subject != "denoiser" or row.limit is None:
        return
    line = f"{row.contestant}, batch {row.batch}: a step reaches {limit(row)}"
    if row.python_s is not None:
        share = row.python_s / row.timing.median
        line += f"; {row.python_s * 1e6:,.0f} µs of it are Python, {share:.1%}"
    yield line


def phases_line(row: Row) -> Iterator[str]:
    """Yield a recovery's time by phase, longest first, and how its images differ."""
    if row.phases is None:
        return
    total = sum(row.phases.values())
    longest = sorted(row.phases.items(), key=lambda phase: -phase[1])
    parts = ", ".join(f"{name} {taken / total:.1%}" for name, taken in longest)
    images = counted(row.images, "image")
    yield f"{row.contestant}, batch {row.batch}, {images} in {total:.2f} s: {parts}"
    if row.largest_difference is not None:
        yield (
            f"{row.contestant}, batch {row.batch}: pixel values differ by at most "
            f"{row.largest_difference} of 255 from the first's"
        )
