"""Log flags and hold-out scores of each epoch to TensorBoard, besides the host's own scalars."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.escaping import visible
from tllm_plugin.hosts.contract import Writer

#: Classes in one image at most: as many as can be told apart.
MOST_CURVES = 12
_COLUMNS = 4
#: Of a share: 20 equal ones. TensorBoard's own are for values of any size, and an epoch's would be a thousand numbers.
_BINS = [twentieths / 20 for twentieths in range(21)]
_TAIL = 0.1


def log_holdout(
    writer: Writer,
    epoch: int,
    *,
    per_class: Tensor,
    flags: Tensor,
    new: Sequence[int],
    curves: Curves,
    reference: Curves | None,
    class_names: Sequence[str],
    few_rows_steps: int,
) -> None:
    """Write one epoch.

    Args:
        writer: TensorBoard writer.
        epoch: The epoch, counted from 1.
        per_class: (C,) float64, hold-out accuracy of each class; NaN for a class without hold-out samples.
        flags: (C,) bool, all flagged classes.
        new: Classes flagged in this epoch.
        curves: The run's hold-out history, this epoch included.
        reference: Curves of the detector's vanilla run; None without one.
        class_names: (C,) names.
        few_rows_steps: See `TLLMWrapper`.
    """
    writer.add_scalar("tllm/flagged_classes", int(flags.sum()), epoch)
    writer.add_scalar("tllm/few_rows_steps", few_rows_steps, epoch)
    known = per_class[~per_class.isnan()]
    if not known.numel():
        return
    writer.add_scalar("tllm/holdout_accuracy", float(known.mean()), epoch)
    writer.add_scalar("tllm/holdout_accuracy_worst_tenth", worst_tenth(known), epoch)
    writer.add_histogram("tllm/holdout_accuracy_per_class", known.numpy(), epoch, bins=_BINS)
    if new:
        image = draw_curves(curves, reference, new, class_names)
        writer.add_image("tllm/newly_flagged_classes", image, epoch, dataformats="HWC")


def worst_tenth(per_class: Tensor) -> float:
    """Return the mean over the tenth of the classes that does worst, at least one class.

    >>> import torch
    >>> worst_tenth(torch.linspace(0, 1, 21))
    0.02500000037252903
    """
    count = max(1, round(_TAIL * per_class.numel()))
    return float(per_class.sort().values[:count].mean())


def draw_curves(
    curves: Curves, reference: Curves | None, classes: Sequence[int], class_names: Sequence[str]
) -> npt.NDArray[np.uint8]:
    """Return (H, W, 3) an image of hold-out accuracy over the epochs, one small plot for each of `classes`.

    Args:
        curves: Of the run.
        reference: Of a vanilla run, drawn up to the same epoch; or None.
        classes: Indices; the first `MOST_CURVES` are drawn.
        class_names: (C,) names.
    """
    # Only now, and without pyplot: its figures are global and stay in memory.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = list(classes)[:MOST_CURVES]
    columns = min(_COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(3.0 * columns, 2.2 * rows), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    run = curves.class_curves("accuracy").numpy()
    vanilla = None if reference is None else reference.class_curves("accuracy").numpy()
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for place, axes in enumerate(grid.ravel()):
        if place >= len(shown):
            axes.set_axis_off()
            continue
        index = shown[place]
        if reference is not None and vanilla is not None:
            until = [row for row, epoch in enumerate(reference.epochs) if epoch <= curves.epochs[-1]]
            epochs = [reference.epochs[row] for row in until]
            axes.plot(epochs, vanilla[until, index], color="0.6", label="vanilla")
        axes.plot(curves.epochs, run[:, index], color="#b84300", label="this run")
        # A dollar sign would start a formula.
        name = _drawable(visible(class_names[index])).replace("$", r"\$")
        axes.set_title(name if len(name) <= 28 else f"{name[:27]}\u2026", fontsize=9)
        axes.set_ylim(-0.03, 1.03)
    grid[0][0].legend(fontsize=7, loc="lower right")
    more = len(classes) - len(shown)
    figure.supxlabel(f"epoch; {more} more classes were flagged" if more > 0 else "epoch", fontsize=8)
    figure.supylabel("hold-out accuracy", fontsize=8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _drawable(text: str) -> str:
    """Return `text` with every sign written out that the default font lacks, of which an empty box would be drawn."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return "".join(sign if font.get_char_index(ord(sign)) else ascii(sign)[1:-1] for sign in text)
