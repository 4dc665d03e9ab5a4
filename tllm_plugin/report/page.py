"""Write `report.html`: one self-contained file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from tllm_plugin.analysis.loaded_run import LoadedRun, load_run, reference_of
from tllm_plugin.analysis.networks import with_predictions
from tllm_plugin.analysis.representations import TSNE_POINTS
from tllm_plugin.analysis.similarity import Similarity, similarity_of
from tllm_plugin.analysis.study import Study, build_study
from tllm_plugin.analysis.teachers import teacher_run
from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.core.escaping import all_visible
from tllm_plugin.report.payload import payload
from tllm_plugin.runs.atomic import write_text

logger = logging.getLogger(__name__)


def write_report(
    runs: Sequence[LoadedRun],
    target: str | os.PathLike[str] | None = None,
    *,
    networks: bool = True,
    points: int = TSNE_POINTS,
) -> Path:
    """Write a report on several runs.

    Vanilla runs and teachers that the runs' configs name are included.

    Args:
        runs: Results of `load_run`, at least one.
        target: File to write; None writes `tllm/report.html` of the last run.
        networks: Whether to run teacher and students on test images, for CKA, agreement and t-SNE, and for runs without
            recorded predictions.
        points: Largest number of points of a t-SNE.

    Returns:
        Path of the report.

    Raises:
        ConfigError: The runs cannot be compared.
        FileFormatError: A run cannot be read.
    """
    if not runs:
        raise ConfigError("Expected at least one run to report on, but got none")
    everything = [*runs, *_mentioned(runs)]
    study = build_study(with_predictions(everything) if networks else everything)
    similarity = similarity_of(study, points=points) if networks else None
    folder = runs[-1].folder
    path = Path(target) if target is not None else Path(folder.report_html if folder is not None else "report.html")
    write_text(path, render(study, similarity))
    return path


def write_report_if_possible(paths: Sequence[str | os.PathLike[str]], *, networks: bool = True) -> Path | None:
    """Write a report after training; a failure is logged and does not raise.

    Returns:
        Path of the report; None if it could not be written.
    """
    try:
        return write_report([load_run(path) for path in paths], networks=networks)
    except (TLLMError, OSError) as error:
        logger.warning("no report was written: %s", error)
        return None


def render(study: Study, similarity: Similarity | None = None) -> str:
    """Return the page."""
    from plotly.offline import get_plotlyjs

    assets = files("tllm_plugin.report") / "assets"
    content = all_visible(payload(study, similarity))
    # ASCII without "<", so that no class name can end the script element.
    data = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "TITLE": escape(content["title"]),
        "STYLE": (assets / "page.css").read_text(encoding="utf-8"),
        "DATA": data,
        "PLOTLY": get_plotlyjs(),
        "SCRIPT": (assets / "page.js").read_text(encoding="utf-8"),
    }
    page = (assets / "page.html").read_text(encoding="utf-8").split("@@")
    # Odd entries are names of parts; inserted text is not searched for further names.
    return "".join(parts[text] if place % 2 else text for place, text in enumerate(page))


def _mentioned(runs: Sequence[LoadedRun]) -> list[LoadedRun]:
    """Return the vanilla runs and teachers that the runs refer to, if they have the same classes."""
    places = {place.resolve() for run in runs for place in (reference_of(run), teacher_run(run)) if place is not None}
    found = []
    for place in sorted(places):
        try:
            found.append(load_run(place))
        except ConfigError as error:  # Runs of a search have no test results.
            logger.warning("left out: %s", error)
    return [run for run in found if run.class_names == runs[0].class_names]
