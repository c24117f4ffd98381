#!/usr/bin/env bash
# The ancestor's training command: bash run_train.sh --train_dir D --valid_dir D --model_name_or_path M --batch_size 8 --gradient_accumulation 1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python=python
[ -x .venv/bin/python ] && python=.venv/bin/python
exec "$python" train_sft.py "$@"
