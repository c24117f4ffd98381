"""The rate of this machine's fp32 products, as JSON: the limit that a run's MFU is held against."""

import json
import sys

import torch

from benchmarks.peers.plan import set_threads
from deft.training.utilisation import product_limit


def main() -> None:
    """Measure with the number of threads given."""
    set_threads(int(sys.argv[1]))
    print(json.dumps({"flop_per_s": product_limit(torch.device("cpu"), torch.float32)}))


if __name__ == "__main__":
    main()
