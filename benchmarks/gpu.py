"""Networks of a bundle on an NVIDIA GPU, against the model in torch, eager and compiled.

    python -m benchmarks.gpu /tmp/real-size/fp16 --model /tmp/real-size/pipeline --engine onnx-cuda

`diver-trt bench` measures whole recoveries and memory as well, and loads every contestant once more
for it; this measures networks alone, prints each row as soon as it has it, and fits into minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack

from diver_trt.bench.ceiling import Ceiling, limit_of
from diver_trt.bench.contestants import Contestant, TorchContestant, engine_contestants
from diver_trt.bench.cost import count
from diver_trt.bench.graph import read_graph
from diver_trt.bench.jobs import work_for
from diver_trt.bench.timing import alternate, speed_ratio
from diver_trt.bench.torch_side import TorchModel, gpu_ceiling
from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS, NetworkName
from diver_trt.errors import EngineError, first_line
from diver_trt.models import ModelOptions
from diver_trt.models.exported import load_exported, require_weights
from diver_trt.recipe import Recipe


def measure(
    name: NetworkName,
    batch: int,
    bundle: Bundle,
    contestants: list[Contestant],
    ceiling: Ceiling,
    seconds: float,
) -> None:
    """Print a row for each contestant: the time of a network's job, and its ratio to the first."""
    work = work_for(bundle, batch, Recipe())
    with ExitStack() as stack:
        networks, names = [], []
        for contestant in contestants:
            started = time.monotonic()
            try:
                network = stack.enter_context(contestant.open(name, work))
                if network is None:
                    continue
                network()
            except EngineError as error:
                print(f"{contestant.name}: {first_line(error)}", file=sys.stderr, flush=True)
                continue
            print(
                f"{contestant.name}, {name}, batch {batch}: ready after "
                f"{time.monotonic() - started:.1f} s",
                file=sys.stderr,
                flush=True,
            )
            networks.append(network)
            names.append(contestant.name)
        timings = alternate(networks, seconds)
    graph = read_graph(bundle.verified(name))
    for contestant_name, network, timing in zip(names, networks, timings, strict=True):
        limit = limit_of(count(graph, network.run_size), ceiling).times(network.runs)
        ratio = speed_ratio(timing, timings[0])
        print(
            f"| {name} | {batch} | {contestant_name} | {timing.median * 1e3:.2f} "
            f"| {timing.percentile(90) * 1e3:.2f} | {batch / timing.median:,.1f} "
            f"| {limit.seconds / timing.median:.0%} of {limit.bound} "
            f"| {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("--model", required=True)
    parser.add_argument("--engine", action="append", required=True)
    parser.add_argument("--network", action="append", default=[], choices=NETWORKS)
    parser.add_argument("--batch", default="1,4,8,16")
    parser.add_argument("--seconds", type=float, default=5.0, help="for one network and batch")
    parser.add_argument(
        "--mode", action="append", default=[], help="of torch.compile, beside torch eager"
    )
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    source = (args.model, None, None)
    model = load_exported(
        bundle, args.model, ModelOptions(timestep_frequencies=bundle.timestep_frequencies)
    )
    require_weights(bundle, model)
    contestants: list[Contestant] = [
        TorchContestant(TorchModel(model, "cuda", half=True), bundle, source)
    ]
    for mode in args.mode:
        compiled = TorchModel(model, "cuda", half=True, compiled=True, mode=mode)
        contestants.append(TorchContestant(compiled, bundle, source))
        contestants[-1].name = f"torch {mode}"
    contestants.extend(engine_contestants(tuple(args.engine), bundle))
    ceiling = gpu_ceiling(half=True)
    print(ceiling.description)
    print("| network | batch | engine | median ms | p90 | images/s | of limit | against eager |")
    print("|---|---:|---|---:|---:|---:|---|---:|")
    names: list[NetworkName] = args.network or ["denoiser"]
    for batch in map(int, args.batch.split(",")):
        for name in names:
            measure(name, batch, bundle, contestants, ceiling, args.seconds)


if __name__ == "__main__":
    main()
