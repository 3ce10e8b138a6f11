"""The losses of a run as a picture."""

from pathlib import Path
from typing import Any


def plot_losses(history: list[dict[str, Any]], path: Path) -> None:
    """Draw the training loss, and the validation loss if there is one, over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("loss", "training"), ("eval_loss", "validation")):
        points = sorted({entry["step"]: entry[key] for entry in history if key in entry}.items())
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 50 else None)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})
