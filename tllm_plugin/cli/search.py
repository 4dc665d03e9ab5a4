"""`tllm search`: choose eta or other TLLM options on a separate hold-out."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from tllm_plugin.cli.search_hosts import HOSTS
from tllm_plugin.cli.training_parsers import DEFAULT_ETAS, DEFAULT_RANGE
from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.core.escaping import visible
from tllm_plugin.hosts import power, processes
from tllm_plugin.hosts.config_checks import refuse
from tllm_plugin.hosts.console import PlainConsole, write_json_result
from tllm_plugin.runs.search_file import SearchRecord, TrialRecord
from tllm_plugin.search.eta_search import TAUGHT, Outcome, check_space, search
from tllm_plugin.search.space import ETA, parse_space, shown_value


def run(options: argparse.Namespace) -> None:
    """Search, and print trials, choice and evidence."""
    processes.refuse_several(
        "a search", "give the command in several terminals or on several machines instead, which then share the trials"
    )
    words, opts, problems = _words(options)
    if (options.cfg is None) != (options.host == "repdistiller"):
        if options.cfg:
            raise ConfigError("Expected no `--cfg` with repdistiller, which has arguments of its own after --")
        options.parser.error("the following arguments are required: --cfg")
    opened = HOSTS[options.host](options, opts)
    space, found = parse_space(words, opened.cfg)
    problems += [*opened.problems, *found]
    problems += check_space(space or [*parse_space([f"{ETA}=0.1"], opened.cfg)[0]], options.trials)
    if options.checkpoint_every is not None and options.checkpoint_every < 1:
        problems.append(f"Expected `--checkpoint-every` to be at least 1, but got {options.checkpoint_every}")
    refuse(problems)
    if options.host == "embedded":
        power.tell_planned(opened.cfg)
    try:
        host = opened.search(space)
        outcome = search(
            host,
            space,
            trials=options.trials,
            storage=options.storage,
            retrain=options.retrain,
            prune=options.prune,
            baseline=not options.no_baseline,
        )
    except KeyboardInterrupt:
        raise TLLMError("interrupted; give the same command again to continue") from None
    if options.json:
        chosen = outcome.record.chosen
        content = {
            "evidence": str(outcome.path),
            "chosen": None if chosen is None else chosen.values,
            "next": None if chosen is None else host.next_command(chosen.values),
            "final": None if outcome.final is None else str(outcome.final.log_folder),
            **asdict(outcome.record),
        }
        write_json_result(options.json, content)
    if options.json != "-":
        print_outcome(outcome, host.next_command)


def _words(options: argparse.Namespace) -> tuple[list[str], list[str], list[str]]:
    """Return the arguments of the search space, all overrides (including those that argparse took for values), and
    errors."""
    problems = []
    etas, after_etas = _leading(options.eta or [], _are_numbers)
    words, after_words = _leading(options.space or [], lambda word: "=" in word)
    if options.eta and not etas:
        problems.append(f"Expected numbers after `--eta`, but got {options.eta[0]!r}")
        after_etas = after_etas[1:]
    if etas:
        words.insert(0, f"{ETA}={','.join(eta.rstrip(',') for eta in etas)}")
    elif not words and options.trials is None:
        words = [f"{ETA}={','.join(DEFAULT_ETAS)}"]
    elif not words:
        words = [DEFAULT_RANGE]
    return words, [*after_etas, *after_words, *options.opts], problems


def _leading(words: Sequence[str], belongs: Any) -> tuple[list[str], list[str]]:
    count = next((place for place, word in enumerate(words) if not belongs(word)), len(words))
    return list(words[:count]), list(words[count:])


def _are_numbers(word: str) -> bool:
    """Return whether an argument consists of numbers separated by commas."""
    try:
        return bool([float(part) for part in word.rstrip(",").split(",")])
    except ValueError:
        return False


def print_outcome(outcome: Outcome, next_command: Callable[[dict[str, Any]], str]) -> None:
    """Print the table, the warnings, the savings from sharing, and the next command."""
    record, chosen = outcome.record, outcome.record.chosen
    console = PlainConsole()
    console.print(table(record))
    console.print(
        f"search accuracy: class-balanced accuracy on {record.holdout_samples} training images that neither training "
        "nor detector used, +- standard error; behind: difference to the best trial on the same images, with the exact "
        "paired p-value."
    )
    if chosen is None:
        return
    values = " ".join(f"{key} {shown_value(value)}" for key, value in chosen.values.items())
    console.print(f"chosen: {values} ({chosen.title})", soft_wrap=True)
    for warning in record.warnings:
        console.print(f"note: {warning}")
    console.print(savings(record))
    console.print(f"evidence: {outcome.path}", soft_wrap=True)
    if outcome.final is not None:
        metrics = outcome.final.read_metrics()
        accuracy = f"{metrics.test_accuracy:.2%}" if metrics.tested else "not measured"
        console.print(f"final student, trained on everything but the detection hold-out: test accuracy {accuracy}")
        console.print(f"run folder: {outcome.final.log_folder}", soft_wrap=True)
        console.print(f"next: tllm show {shlex.quote(str(outcome.final.log_folder))}", soft_wrap=True)
    else:
        console.print(f"next: {next_command(chosen.values)}", soft_wrap=True)


def table(record: SearchRecord) -> Table:
    """Return one row per trial and baseline."""
    result = Table(title="search", title_justify="left")
    # Long cells are folded, because truncated values could look equal.
    result.add_column("run", overflow="fold")
    keys = [text.partition("=")[0] for text in record.space]
    for key in keys:
        result.add_column(key.rpartition(".")[2].lower(), justify="right", overflow="fold")
    for name in ("search accuracy", "behind (p)", "epochs trained"):
        result.add_column(name, justify="right", overflow="fold")
    result.add_column("flagged (after epoch)", overflow="fold")
    for trial in (*record.baselines, *record.trials):
        best = trial.number == record.best and trial.number >= 0
        values = [shown_value(trial.values[key]) if key in trial.values else "" for key in keys]
        result.add_row(
            trial.title + (" *" if best else ""), *values, *_cells(trial, best), style="bold" if best else ""
        )
    return result


def _cells(trial: TrialRecord, best: bool) -> list[str]:
    trained = f"{trial.epochs - trial.shared_epochs} of {trial.epochs}"
    flagged = ", ".join(
        f"{visible(item.name)} ({item.epoch})" for item in sorted(trial.flagged, key=lambda item: item.epoch)
    )
    if trial.pruned_after:
        return [f"pruned at {100 * trial.curve[-1]:.1f}", "", trained, flagged or "none"]
    if trial.score is None or trial.standard_error is None:
        return ["failed", "", "", trial.error]
    behind = ""
    if trial.difference is not None and trial.p_value is not None and not best:
        behind = (
            f"{100 * trial.difference:+.1f} +- {100 * (trial.difference_standard_error or 0):.1f} ({trial.p_value:.2g})"
        )
    return [f"{100 * trial.score:.1f} +- {100 * trial.standard_error:.1f}", behind, trained, flagged or "none"]


def savings(record: SearchRecord) -> str:
    """Describe in one sentence what shared and pruned epochs saved, relative to training every trial in full."""
    runs = [*record.baselines, *(trial for trial in record.trials if trial.curve)]
    alone = [run for run in runs if run.title != TAUGHT]
    trained = sum(run.epochs - run.shared_epochs for run in runs)
    full = max(run.epochs for run in runs)
    seconds = sum(run.seconds_trained for run in runs)
    seconds_alone = sum(run.seconds * full / run.epochs for run in alone)
    text = f"saved: {trained} epochs were trained instead of {full * len(alone)}"
    return f"{text}, in {seconds:.1f} instead of about {seconds_alone:.1f} seconds" if seconds else text
