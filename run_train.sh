#!/usr/bin/env bash
# The ancestor's training command: bash run_train.sh --train_dir D --valid_dir D --model_name_or_path M --batch_size 8 --gradient_accumulation 1
# One process for each GPU; NUM_PROCESSES=N decides otherwise.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python=python
[ -x .venv/bin/python ] && python=.venv/bin/python
num_gpus=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)  # no nvidia-smi: no GPU
num_processes=${NUM_PROCESSES:-$((num_gpus > 1 ? num_gpus : 1))}
if [ "$num_processes" -gt 1 ] || [[ " $* " == *" --deepspeed"* ]]; then  # DeepSpeed wants torchrun for one as well
  exec "$python" -m torch.distributed.run --standalone --nproc_per_node "$num_processes" train_sft.py "$@"
fi
exec "$python" train_sft.py "$@"
