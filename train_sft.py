"""The ancestor's training command, with its flags: `python train_sft.py --train_dir D --valid_dir D …`."""

import sys

from deft.ancestor.flags import config_from_flags
from deft.commands.exits import run_or_explain
from deft.commands.train import train_files
from deft.hub.pull import fetch_embedded


def main() -> None:
    """Train as the flags say."""
    config = config_from_flags(sys.argv[1:])
    fetch_embedded(config.model)
    train_files(config)


if __name__ == "__main__":
    sys.exit(run_or_explain(main))
