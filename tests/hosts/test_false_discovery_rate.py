"""The false discovery rate is said as FDR; CONFIDENCE, which is 1 - FDR, means the same wherever it was accepted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.hosts.digits_runs import CONFIG
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.options import complement, table
from tllm_plugin.hosts.repdistiller import parse_student
from tllm_plugin.hosts.repdistiller.arguments import flags_of, split_arguments
from tllm_plugin.hosts.run_spec import ONE_RUN, RunSpec
from tllm_plugin.search.host import around_digest, tllm_digest
from tllm_plugin.search.space import parse_space, with_values

FDR, CONFIDENCE = "TLLM.DETECTOR.FDR", "TLLM.DETECTOR.CONFIDENCE"


@pytest.mark.parametrize(("confidence", "fdr"), [(0.95, 0.05), (0.9, 0.1), (0.99, 0.01), (0.0, 1.0), (0.5, 0.5)])
def test_both_spellings_are_one_config(confidence: float, fdr: float) -> None:
    old, new = (load_config(CONFIG, words) for words in ([CONFIDENCE, str(confidence)], [FDR, str(fdr)]))
    assert old == new and fdr == old.TLLM.DETECTOR.FDR and "CONFIDENCE" not in old.TLLM.DETECTOR
    assert old == load_config(CONFIG, [FDR, str(fdr), CONFIDENCE, str(confidence)])
    assert tllm_digest(old) == tllm_digest(new)
    assert complement(complement(confidence)) == confidence


@pytest.mark.parametrize("words", [(FDR, "0.05", CONFIDENCE, "0.9"), (CONFIDENCE, "0.95", FDR, "0.1")])
def test_contradictory_spellings_are_an_error(words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="^Expected `TLLM.DETECTOR.CONFIDENCE`, the old spelling .* leave one of"):
        load_config(CONFIG, words)
    path = tmp_path / "c.yaml"
    path.write_text(f"TLLM: {{DETECTOR: {{{words[0].rpartition('.')[2]}: {words[1]}}}}}\n")
    with pytest.raises(ConfigError, match="^Expected `TLLM.DETECTOR.CONFIDENCE`, the old spelling"):
        load_config(path, words[2:])


def test_a_recorded_run_of_the_old_spelling_is_the_same_run() -> None:
    cfg = load_config(CONFIG, [FDR, "0.1"])
    old = cfg.dump().replace("FDR: 0.1", "CONFIDENCE: 0.9")
    assert "CONFIDENCE: 0.9" in old
    assert RunSpec.parse(old).differing(RunSpec.of(cfg), ONE_RUN) == []
    assert RunSpec.parse(old).config().TLLM == cfg.TLLM
    assert RunSpec.parse(old).differing(RunSpec.of(load_config(CONFIG)), ONE_RUN) == [FDR]
    recorded = RunSpec.of_options({"tllm_confidence": 0.9, "tllm_eta": 0.1})
    assert recorded.differing(RunSpec.of_options({"tllm_fdr": 0.1, "tllm_eta": 0.1}), ONE_RUN) == []


def test_a_search_of_the_old_spelling_goes_on_under_its_keys_and_names() -> None:
    cfg = load_config(CONFIG)
    (old,), (new,) = (parse_space([word], cfg)[0] for word in ("CONFIDENCE=0,0.9", "FDR=1,0.1"))
    assert (old.key, old.choices, new.key, new.choices) == (CONFIDENCE, (0.0, 0.9), FDR, (1.0, 0.1))
    assert with_values(cfg, {CONFIDENCE: 0.9}) == with_values(cfg, {FDR: 0.1})
    assert around_digest(cfg, [old]) == around_digest(cfg, [new])
    assert "once in the search space" in parse_space(["CONFIDENCE=0,0.9", "FDR=1,0.1"], cfg)[1][0]
    assert "`TLLM.DETECTOR.CONFIDENCE` to be in [0, 1), but got 1.5" in parse_space(["CONFIDENCE=0,1.5"], cfg)[1][0]
    # Around a rate that was given, too.
    assert parse_space(["CONFIDENCE=0,0.9"], load_config(CONFIG, [FDR, "0.2"]))[1] == []


def test_flags_of_repdistiller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "models", SimpleNamespace(model_dict={"resnet8": object}))  # type: ignore[misc]
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    checkpoint = tmp_path / "resnet8_x" / "last.pth"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    given = ["--path_t", str(checkpoint), "--tllm", "--tllm_detector", "imitation"]

    def parse(*words: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        parser.add_argument("--dataset", default="cifar100", choices=["cifar100"])
        for name in ("--model_s", "--model_t"):
            parser.add_argument(name, default="resnet8")
        parser.add_argument("--path_t")
        monkeypatch.setattr(sys, "argv", ["train.py", *given, *words])
        return parse_student(parser)

    old, new = parse("--tllm_confidence", "0.9"), parse("--tllm_fdr", "0.1")
    assert vars(old) == vars(new) and old.tllm_fdr == 0.1 and "tllm_confidence" not in old
    for words, message in (
        (("--tllm_confidence", "0.9", "--tllm_fdr", "0.05"), "^Expected `--tllm_confidence`, the old .*`--tllm_fdr`"),
        (("--tllm_confidence", "1"), r"^Expected `--tllm_confidence` to be in \[0, 1\), but got 1.0"),
        (("--tllm_fdr", "0"), r"^Expected `--tllm_fdr` to be in \(0, 1\], but got 0.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(*words)
        assert any(message.split("`")[1] in problem for problem in split_arguments([*given, *words])[1])
    node = split_arguments([*given, "--tllm_confidence", "0.9"])[0].node
    assert node.DETECTOR.FDR == 0.1 and "--tllm_fdr" in flags_of(node) and "--tllm_confidence" not in flags_of(node)


def test_every_option_accepts_its_default_and_says_what_it_is() -> None:
    for key, option in table().items():
        assert option.check is None or option.check(option.default) is None, key
        assert option.help and not option.help.endswith("."), key
        assert type(option.read(option.default)) is type(option.default)
    flags = [option.flag for option in table().values() if option.flag]
    assert len(set(flags)) == len(flags)
