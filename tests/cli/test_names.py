"""Names are data, in every output: whatever a class or a run is called, it is shown and never obeyed."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.analysis.planted_runs import write_run
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.analysis.records import as_csv
from tllm_plugin.analysis.study import build_study
from tllm_plugin.cli import main
from tllm_plugin.core.escaping import csv_text, latex_text, markdown_text, visible
from tllm_plugin.hosts.tensorboard import draw_curves

HOSTILE = [
    "\x1b[31mred\x1b[0m\x07\x9b2J",
    "abc\u202egpj.exe\u2066x\u2069\u200f",
    "caf\udce9",
    "=HYPERLINK(\"http://x\",'y')",
    "+1",
    "-2+3",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "a|b`c[d](e)<i>&*f*_g_~~h~~$i$\\",
    "two\nlines\r\nand a third\u2028",
    "50%_of #1 {x} ~ ^ \\input{x}",
    "[red]x[/red] :smile: [link=http://x]y[/link]",
    "'s",
    "\ud83d",
    "",
]
SIGNS = "=+-@\t\r\n|`[]()*_~$\\<>&%#{}^:'\" ,;a\u00e9\u4e2d"
ALPHABET = st.sampled_from(SIGNS + "\x1b\x07\x7f\x9b\u202e\u2066\u200b\udce9\ud800")
NAMES = st.sampled_from(HOSTILE) | st.text(ALPHABET, max_size=12) | st.text(max_size=8)
seeded = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def obeyed(text: str, keep: str = "\n") -> list[str]:
    """Return what a terminal or an editor would act upon."""
    return [s for s in text if s not in keep and unicodedata.category(s) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


def cells(line: str) -> int:
    """Return how many cells GFM sees in the row of a table."""
    assert line.startswith("| ") and line.endswith(" |")
    return len(re.split(r"(?<!\\)(?:\\\\)*\|", line)) - 2


@settings(seeded, max_examples=300)
@given(name=NAMES)
def test_each_kind_of_output(name: str) -> None:
    shown = visible(name)
    assert not obeyed(shown, keep="") and visible(shown) == shown
    assert shown == name or obeyed(name, keep="")

    marked = markdown_text(name)
    assert not obeyed(marked, keep="") and cells(f"| {marked} |") == 1
    # Without the escapes it is the text, and nothing that means anything stands without one.
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", marked) == shown
    assert not re.search(r"[`*_\[\]<|~&$]", re.sub(r"\\.", "", marked))

    tex = latex_text(name)
    assert not obeyed(tex, keep="")
    bare = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum)\{\}|\$(<|>|\||\\Delta)\$|\{[\[\]]\}", "", tex)
    assert not re.search(r"[&%$#_{}~^\\]", re.sub(r"\\[%&#_{}$]", "", bare))

    cell = csv_text(name)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    data = as_csv([{"class": name, "delta": -0.5}]).encode("utf-8", "surrogateescape")
    _, row = csv.reader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline=""))
    back = row[0].removeprefix("'")
    assert row[1] == "-0.5" and (back == name or re.search("[\ud800-\udc7f\udd00-\udfff]", name))


def runs_with(names: list[str], folder: Path) -> list[str]:
    common = {"classes": len(names), "names": names, "per_class": 8, "epochs": 3}
    vanilla = write_run(folder / "v\x1b[1m", **common)  # type: ignore[arg-type]
    kd = write_run(folder / "k|d\u202e", method="KD", flagged=(1,), hurt=(0,), **common)  # type: ignore[arg-type]
    return [str(vanilla), f"+kd|[m]={kd}"]


@settings(seeded, max_examples=6, phases=[Phase.generate])
@given(names=st.lists(NAMES.filter(lambda name: "\0" not in name), min_size=4, max_size=4, unique=True))
def test_every_command(names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = runs_with(names, tmp_path / f"{len(list(tmp_path.iterdir()))}")
    folder = words[1].partition("=")[2]
    printed = [["show", folder], ["compare", *words], ["compare", *words, "--markdown", "-"], ["tables", folder]]
    for command in printed:
        assert main(command) == 0
        output = capsys.readouterr()
        assert not obeyed(output.out + output.err), command
    for kind in ("json", "csv", "markdown"):
        assert main(["compare", *words, f"--{kind}", str(tmp_path / "out"), "--classes", "9"]) == 0
        assert not obeyed(capsys.readouterr().out)
        content = (tmp_path / "out").read_bytes().decode("utf-8", "surrogateescape")
        if kind == "json":
            assert [record["class"] for record in json.loads(content)["classes"]] == names
        elif kind == "csv":
            rows = list(csv.DictReader(io.StringIO(content, newline="")))
            assert len(rows) == 4 and rows[0]["method"] == "'+kd|[m]"
            for row, name in zip(rows, names, strict=True):
                assert row["class"].removeprefix("'") == name or re.search("[\ud800-\udc7f\udd00-\udfff]", name)
        else:
            tables = [block.splitlines() for block in content.split("\n\n") if block.startswith("| ")]
            assert len(tables) >= 2 and len(tables[1]) == 2 + 4
            for table in tables:
                assert len({cells(line) for line in table}) == 1
            assert not obeyed(content)
    page = tmp_path / "page.html"
    assert main(["report", *words, "--no-networks", "--out", str(page)]) == 0
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert json.loads(data)["classes"] == [visible(name) for name in names] and not obeyed(html.unescape(data))
    run = load_run(folder)
    assert run.class_names == tuple(names) and build_study([run]).class_names == tuple(names)
    assert run.curves is not None and draw_curves(run.curves, None, range(4), names).any()


def test_errors_and_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = f"{tmp_path}/\x1b[31m\u202e\udce9"
    assert main(["show", nothing]) == 1
    assert main(["compare", nothing, nothing]) == 1
    write_run(tmp_path / "bad\x1b[2J" / "run\u202e").joinpath("tllm/metrics.json").write_text("{")
    assert main(["tables", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert not obeyed(output.out + output.err)
    told = "".join(output.err.split())
    assert "\\x1b[31m\\u202e\\xe9" in told and "bad\\x1b[2J" in told
