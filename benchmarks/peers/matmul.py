"""The rate of this machine's matrix products, fp32, as JSON: the best of several products of 2048 × 2048."""

import json
import sys
import time

import torch

from benchmarks.peers.plan import set_threads

SIZE = 2048
MEASURED_S = 2.0


def main() -> None:
    """Measure with the number of threads given."""
    set_threads(int(sys.argv[1]))
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIZE, SIZE, generator=generator) for _ in range(2))
    fastest, ends_at = float("inf"), time.perf_counter() + MEASURED_S
    while time.perf_counter() < ends_at:
        began_at = time.perf_counter()
        left @ right
        fastest = min(fastest, time.perf_counter() - began_at)
    print(json.dumps({"flop_per_s": 2 * SIZE**3 / fastest}))


if __name__ == "__main__":
    main()
