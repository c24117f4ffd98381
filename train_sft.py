"""The ancestor's training command, with its flags: `python train_sft.py --train_dir D --valid_dir D …`."""

import sys

from deft.cli import run_or_explain, train_files
from deft.train.ancestor import config_from_flags

if __name__ == "__main__":
    sys.exit(run_or_explain(lambda: train_files(config_from_flags(sys.argv[1:]))))
