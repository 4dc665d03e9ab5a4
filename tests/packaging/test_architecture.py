"""`docs/architecture.md`: every function that it names is in the file that it names beside it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
#: A line of a drawing: names, two spaces or more, a file of the package.
STOP = re.compile(r"^[│├└─ ]*([A-Za-z_][\w., ()]*?) {2,}([\w/]+\.py)", re.M)


def test_functions_are_where_the_page_says() -> None:
    stops = STOP.findall(PAGE)
    assert len(stops) > 25, "the drawings were not found"
    missing = []
    for names, file in stops:
        source = (ROOT / "tllm_plugin" / file).read_text(encoding="utf-8")
        for name in re.findall(r"[A-Za-z_][\w.]*", re.sub(r"\(.*?\)", "", names)):
            *owner, function = name.split(".")
            for part in (*owner, function):
                if not re.search(rf"^\s*(def|class) {part}\b", source, re.M):
                    missing.append(f"{name}: no {part} in {file}")
    assert not missing, "\n".join(missing)


def test_files_are_there() -> None:
    named = set(re.findall(r"`?((?:hosts|core|runs|search|data|cli|docs)/[\w/]+\.(?:py|md))", PAGE))
    assert len(named) > 15
    assert not [file for file in named if not ((ROOT / "tllm_plugin" / file).exists() or (ROOT / file).exists())]
