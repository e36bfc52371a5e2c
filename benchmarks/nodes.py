"""How many nodes a bundle's graphs have, in all and per block of the denoiser, and of which kinds.

    python -m benchmarks.nodes engines/digits

Prints the tables of `benchmarks/README.md`. A block begins at its first layer normalisation and
ends where the next one begins; the graph lists nodes in the order in which they run.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import onnx

from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS


def block_nodes(graph: onnx.GraphProto) -> Counter[str]:
    """Return the nodes of the first block of a DiT's denoiser by kind."""
    norms = [i for i, node in enumerate(graph.node) if node.op_type == "LayerNormalization"]
    # A block has two of them: before the attention and before the MLP.
    return Counter(node.op_type for node in graph.node[norms[0] : norms[2]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    bundle = Bundle.open(parser.parse_args().bundle)
    print("| network | nodes | kinds |")
    print("|---|---:|---|")
    for name in NETWORKS:
        graph = onnx.load(bundle.path / f"{name}.onnx", load_external_data=False).graph
        rows: list[tuple[str, Counter[str]]] = [
            (name, Counter(node.op_type for node in graph.node))
        ]
        if name == "denoiser":
            rows.append(("a block of it", block_nodes(graph)))
        for title, kinds in rows:
            listed = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
            print(f"| {title} | {kinds.total()} | {listed} |")


if __name__ == "__main__":
    main()
