"""The loss figure of a run: training loss by step, validation loss by ability at the end of each epoch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.report.drawing import MOST_NAMES, plain_text, save, shown_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_losses(path: Path, lines: list[dict[str, Any]]) -> None:
    """Draw into a PNG file what a run logged, a value of `lines` for each line of its `metrics.jsonl`."""
    with plain_text():
        save(loss_figure(lines), path)


def loss_figure(lines: list[dict[str, Any]]) -> "Figure":
    """Return the figure of what a run logged; of very many abilities it shows the first by name."""
    from matplotlib.figure import Figure

    training = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    validation = [line for line in lines if "eval_loss" in line]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    if training:
        axes.plot(*zip(*training, strict=True), color="0.75", linewidth=1, label="training, each step")
    abilities = sorted({name for line in validation for name in line if name.startswith("eval_loss_")})
    for name in abilities[:MOST_NAMES] if len(abilities) > 1 else []:
        points = [(line["step"], line[name]) for line in validation if name in line]
        axes.plot(
            *zip(*points, strict=True), marker=".", linewidth=1, label=shown_name(name.removeprefix("eval_loss_"))
        )
    if validation:
        points = [(line["step"], line["eval_loss"]) for line in validation]
        axes.plot(*zip(*points, strict=True), color="black", marker="o", linewidth=2, label="validation, all")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per supervised token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
