"""The ancestor's data command: `python make_data.py --data_type T` writes one of the paper's data mixes."""

import argparse
import sys
from pathlib import Path

from deft.commands.exits import run_or_explain


def main() -> None:
    """Write `OUTPUT_DIR/T/train.json` from a data set in DoIT's layout."""
    from deft.ancestor.mixes import make_mix, mix_table
    from deft.data.write import write_examples

    parser = argparse.ArgumentParser(description="Write one of the paper's data mixes.")
    parser.add_argument("--data_type", required=True, metavar="T", help=", ".join(mix_table()))
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="a data set in DoIT's layout")
    parser.add_argument("--output_dir", type=Path, default=Path("train_data"), help="where the folder T is made")
    parser.add_argument("--seed", type=int, default=0, help="decides which rows; smaller mixes are part of larger ones")
    flags = parser.parse_args()
    file = flags.output_dir / flags.data_type / "train.json"
    num_rows = write_examples(file, make_mix(flags.data_type, flags.data_dir, seed=flags.seed))
    print(f"{num_rows} rows → {file}")


if __name__ == "__main__":
    sys.exit(run_or_explain(main))
