"""The loss figure of a run: training loss by step, validation loss by ability at the end of each epoch."""

import warnings
from pathlib import Path

from deft.rundir import written_whole
from deft.train.record import read_metrics

FONTS = ["DejaVu Sans", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei"]
"""Tried in this order for each character, so that Chinese ability names show wherever a Chinese font is installed."""


def draw_losses(run: Path) -> None:
    """Draw `loss.png` from the run's `metrics.jsonl`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines = read_metrics(run)
    training = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    validation = [line for line in lines if "eval_loss" in line]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    if training:
        axes.plot(*zip(*training, strict=True), color="0.75", linewidth=1, label="training, each step")
    abilities = sorted({name for line in validation for name in line if name.startswith("eval_loss_")})
    for name in abilities if len(abilities) > 1 else []:
        points = [(line["step"], line[name]) for line in validation if name in line]
        axes.plot(*zip(*points, strict=True), marker=".", linewidth=1, label=name.removeprefix("eval_loss_"))
    if validation:
        points = [(line["step"], line["eval_loss"]) for line in validation]
        axes.plot(*zip(*points, strict=True), color="black", marker="o", linewidth=2, label="validation, all")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per supervised token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    with warnings.catch_warnings(), rc_context({"font.family": FONTS}), written_whole(run / "loss.png") as temporary:
        warnings.simplefilter("ignore")  # a font that is not installed, a glyph that none of them has
        figure.savefig(temporary, dpi=150, format="png")
