"""A config that lost a part is refused, wherever it was cut, and so is the run that it belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.analysis.planted_runs import write_run
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.cli import main
from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.hosts.embedded.defaults import default_config
from tllm_plugin.hosts.results import described
from tllm_plugin.hosts.run_spec import RunSpec
from tllm_plugin.runs.run_folder import RunFolder

#: As this and as earlier versions leave a run's config.
DUMPED = described(default_config().dump())
REPDISTILLER = "host:\n  name: RepDistiller\noptions:\n  alpha: 0.9\nversions:\n  tllm_plugin: '0'\n  python: 3.11.7\n"

seeded = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def cut_anywhere(text: str) -> st.SearchStrategy[str]:
    lines = [place for place, sign in enumerate(text) if sign == "\n"]
    return (st.integers(0, len(text) - 1) | st.sampled_from([place + 1 for place in lines[:-1]])).map(
        lambda end: text[:end]
    )


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.inside(tmp_path / "run").create()


@pytest.mark.parametrize("text", [DUMPED, REPDISTILLER, "", "a: b", "\u00e9: \u2028 \r\n"])
def test_what_is_written_is_read(text: str, run: RunFolder) -> None:
    run.write_config(text)
    assert run.read_config() == text


@pytest.mark.parametrize("text", [DUMPED, default_config().dump(), REPDISTILLER, DUMPED + "VID:\n  INIT: 5.0\n"])
def test_those_of_earlier_versions_are_read(text: str, run: RunFolder) -> None:
    run.config_yaml.write_text(text)
    assert run.read_config() == text


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), new=st.booleans(), text=st.sampled_from([DUMPED, REPDISTILLER]))
def test_one_that_lost_its_end_is_refused(data: st.DataObject, new: bool, text: str, run: RunFolder) -> None:
    run.write_config(text)
    whole = run.config_yaml.read_text() if new else text
    run.config_yaml.write_text(data.draw(cut_anywhere(whole)))
    for read in (run.read_config, lambda: RunSpec.read(run)):
        with pytest.raises(FileFormatError, match=r"config\.yaml to be the config of a run, but it lost"):
            read()


@settings(seeded, max_examples=60)
@given(place=st.integers(0, len(DUMPED) - 1), sign=st.integers(0, 255))
def test_one_changed_byte_is_noticed(place: int, sign: int, run: RunFolder) -> None:
    run.write_config(DUMPED)
    data = bytearray(run.config_yaml.read_bytes())
    before, data[-1 - place] = data[-1 - place], sign
    run.config_yaml.write_bytes(bytes(data))
    if before == sign:
        assert run.read_config() == DUMPED
    else:
        with pytest.raises(FileFormatError, match=r"config\.yaml"):
            run.read_config()


def test_a_run_with_half_a_config_is_no_other_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vanilla = write_run(tmp_path / "vanilla")
    kd = write_run(tmp_path / "kd", method="KD", hurt=(3,))
    assert main(["compare", str(vanilla), str(kd), "--json", "-"]) == 0
    path = RunFolder.inside(kd).config_yaml
    lines = path.read_text().splitlines(keepends=True)
    capsys.readouterr()
    # Without its last lines it would be a vanilla run, or one of another seed.
    for kept in range(len(lines)):
        path.write_text("".join(lines[:kept]))
        for words in (["compare", str(vanilla), str(kd)], ["report", str(vanilla), str(kd), "--no-networks"]):
            assert main(words) == 1, kept
            (line,) = capsys.readouterr().err.splitlines()
            assert f"Expected {path} to be the config of a run" in line
        assert main(["tables", str(tmp_path)]) == 0
        shown = capsys.readouterr()
        assert "from 1 finished runs" in shown.out and "left out" in shown.err
        with pytest.raises(FileFormatError):
            load_run(kd)
