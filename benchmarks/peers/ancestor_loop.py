"""The ancestor's settings in a plain loop: rows padded on the left to the longest of their step, activations computed
again in the backward pass (gradient checkpointing), and logits of every position, padding included.
"""

import sys
from pathlib import Path

import torch
from torch import nn

from benchmarks.peers.plan import ADAM_BETAS, MAX_GRAD_NORM, WEIGHT_DECAY, Clock, Plan, start, tell
from deft.model.load import load_model
from deft.types import IGNORED_LABEL


def padded(plan: Plan, step: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, attention mask and labels of a step, each int64 [rows, longest]."""
    rows = [plan.rows[number] for number in step]
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED_LABEL)
    for number, row in enumerate(rows):
        ids[number, -len(row) :] = torch.from_numpy(row.input_ids).long()
        mask[number, -len(row) :] = 1
        labels[number, -len(row) :] = torch.from_numpy(row.labels).long()
    return ids, mask, labels


def optimizer_of(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """Return AdamW as transformers makes it: fused, and without decay for norms and biases."""
    parameters = list(model.parameters())
    groups = [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=ADAM_BETAS, fused=True)


def main() -> None:
    """Train as the plan says and print a report."""
    plan = start(sys.argv[1:])
    clock = Clock(plan)
    loaded = load_model(plan.model, dtype="float32", device="cpu")
    model = loaded.model.train()
    model.gradient_checkpointing_enable()
    clock.watch(model)
    optimizer = optimizer_of(model, plan)
    clock.begin()
    for number, step in enumerate(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * plan.factor(number)
        ids, mask, labels = padded(plan, step)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits.float()
        loss = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED_LABEL
        )
        del logits
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.step_done()
    checkpoint = Path(plan.folder) / "ancestor"
    model.save_pretrained(checkpoint)
    loaded.tokenizer.save_pretrained(checkpoint)
    tell(clock.report("ancestor", checkpoint, head_positions=clock.positions))


if __name__ == "__main__":
    main()
