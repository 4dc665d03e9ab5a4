"""What a search over 5 values of eta and the vanilla reference costs, in units of one KD run of the same loop.

    python benchmarks/search_cost.py --out output/search-cost --rounds 2

A is one run of the distiller without TLLM's detector (`none`) as `tllm train` makes it, its teacher at hand. B is
everything that `tllm search` does: the vanilla reference, the run without detection, the trials, the choice.
They alternate, A B A B, each round in a folder of its own, and both have the same search hold-out. Printed are CPU
seconds of the process, everything included but the import of Optuna (once per process, told beside the table;
wall-clock seconds are told as well, which other work on the machine disturbs; on a GPU look at these), and epochs
trained.

"Vanilla there": B without the vanilla reference, as for a second search that finds it. "Same looks": B in units of its
own KD run, which never looks at test data, while A does after every epoch. "One by one" is the vanilla reference and
every trial from its first epoch to its last, by their seconds per epoch, in units of B's own KD run.

With `--commands` A and B are whole commands, `tllm train` and `tllm search`, each from an empty folder: imports and the
training of the teacher, which are the same in both, count.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.prerequisites import needed_teacher
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.embedded import EmbeddedSearch
from tllm_plugin.search.eta_search import TAUGHT, Outcome, search
from tllm_plugin.search.host import SEARCH_FRACTION
from tllm_plugin.search.space import TYPE, parse_space, with_values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", default="tllm/embedded/digits.yaml")
    parser.add_argument("--out", default="output/search-cost", metavar="FOLDER", help="emptied before each round")
    parser.add_argument("--eta", nargs="+", default=["0.01", "0.02", "0.05", "0.1", "0.2"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prune", default="", help="as of `tllm search`")
    parser.add_argument("--no-baseline", action="store_true", help="as of `tllm search`")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    parser.add_argument("--commands", action="store_true", help="measure whole commands")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if options.commands:
        compare_commands(options)
    else:
        compare_runs(options)


def compare_commands(options: argparse.Namespace) -> None:
    """Print what the two commands cost."""
    cfg = load_config(options.cfg, options.opts)
    fraction = cfg.TLLM.HOLDOUT.SEARCH_FRACTION or cfg.TLLM.HOLDOUT.FRACTION
    flags = [*(["--prune", options.prune] if options.prune else []), *["--no-baseline"] * options.no_baseline]
    commands = (
        ["train", "--cfg", options.cfg, *options.opts, TYPE, "none", SEARCH_FRACTION, str(fraction)],
        ["search", "--cfg", options.cfg, "--eta", *options.eta, *flags, *options.opts],
    )
    print("| round | A, CPU s (wall) | B, CPU s (wall) | ratio (wall) |\n| --- | --- | --- | --- |")
    ratios = []
    for number in range(options.rounds):
        (cpu, wall), (search_cpu, search_wall) = (cost_of(words, Path(options.out)) for words in commands)
        ratios.append(search_cpu / cpu)
        print(
            f"| {number} | {cpu:.1f} ({wall:.0f}) | {search_cpu:.1f} ({search_wall:.0f}) | "
            f"{ratios[-1]:.2f} ({search_wall / wall:.2f}) |",
            flush=True,
        )
    print(f"\nratio of whole commands, median: {statistics.median(ratios):.2f}")


def cost_of(words: list[str], folder: Path) -> tuple[float, float]:
    """Run `tllm` in an empty folder; return its CPU and wall-clock seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "tllm_plugin", *words, "LOG.PREFIX", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall


def compare_runs(options: argparse.Namespace) -> None:
    """Print what the runs cost within one process."""
    parts = timed_runs()
    imported = import_optuna(Path(options.out))
    print(
        f"{' '.join([options.cfg, *options.opts])}: {len(options.eta)} values of eta, torch {torch.__version__}, "
        f"{platform.machine()}, {torch.get_num_threads()} threads; {options.rounds} rounds, A B A B; "
        f"Optuna's import {imported:.1f} CPU s\n\n"
        "| round | KD run, CPU s (wall) | search, CPU s (wall): vanilla + KD + trials + rest | ratio (wall) | "
        "vanilla there | same looks | epochs | one by one | flags of the trials |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    rounds = []
    for number in range(options.rounds):
        item = measure(options, number, parts)
        rounds.append(item)
        print(
            f"| {number} | {item['kd_seconds'][0]:.1f} ({item['kd_seconds'][1]:.0f}) | "
            f"{item['search_seconds'][0]:.1f} ({item['search_seconds'][1]:.0f}): "
            f"{' + '.join(f'{seconds:.1f}' for seconds in item['parts'].values())} | "
            f"{item['ratio']:.2f} ({item['wall_ratio']:.2f}) | {item['ratio_vanilla_there']:.2f} | "
            f"{item['ratio_same_looks']:.2f} | "
            f"{item['epochs_trained']} / {item['kd_epochs']} = {item['epochs_trained'] / item['kd_epochs']:.2f} | "
            f"{item['alone_ratio']:.2f} | {item['flags']} |",
            flush=True,
        )
    print(f"\nratio, median: {statistics.median(item['ratio'] for item in rounds):.2f} (goal: at most 1.5)")
    (Path(options.out) / "search_cost.json").write_text(json.dumps(rounds, indent=2))


def now() -> tuple[float, float]:
    """Return CPU and wall-clock seconds."""
    return time.process_time(), time.perf_counter()


def since(started: tuple[float, float]) -> tuple[float, float]:
    cpu, wall = now()
    return cpu - started[0], wall - started[1]


def timed_runs() -> dict[str, float]:
    """Let every run from now on note its CPU seconds under what it is for."""
    parts: dict[str, float] = {}
    original = recipe.run

    def run(cfg: CfgNode, **how: Any) -> RunFolder:
        name = cfg.EXPERIMENT.NAME.rpartition("/")[2].partition("-")[0]
        started = now()
        folder = original(cfg, **how)
        parts[name] = parts.get(name, 0.0) + since(started)[0]
        return folder

    recipe.run = run
    return parts


def import_optuna(folder: Path) -> float:
    """Import Optuna and open a study's storage with it; return the CPU seconds."""
    started = now()
    from tllm_plugin.search.storage import open_storage

    folder.mkdir(parents=True, exist_ok=True)
    open_storage("", folder)
    return since(started)[0]


def measure(options: argparse.Namespace, number: int, parts: dict[str, float]) -> dict[str, Any]:
    """Run A and B once, in an empty folder, and return their costs."""
    folder = Path(options.out) / f"round-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    cfg = load_config(options.cfg, ["LOG.PREFIX", str(folder), *options.opts])
    cfg = with_values(cfg, {SEARCH_FRACTION: cfg.TLLM.HOLDOUT.SEARCH_FRACTION or cfg.TLLM.HOLDOUT.FRACTION})
    bundle = load_bundle(cfg)
    # Both need the teacher, which is trained once whatever is searched.
    teacher = needed_teacher(cfg)
    if teacher is not None:
        recipe.ensure_trained(teacher, bundle)
    started = now()
    recipe.run(with_values(cfg, {TYPE: "none", "EXPERIMENT.NAME": "kd"}), bundle=bundle)
    kd_seconds = since(started)
    space, _ = parse_space([f"ETA={','.join(options.eta)}"], cfg)
    parts.clear()
    started = now()
    host = EmbeddedSearch(cfg, space)
    host.bundle = bundle  # As A has it.
    outcome = search(host, space, prune=options.prune, baseline=not options.no_baseline)
    seconds = since(started)
    found = {name: parts.get(name, 0.0) for name in ("vanilla", "taught", "trial")}
    found["rest"] = seconds[0] - sum(found.values())
    ratios = {
        "ratio": seconds[0] / kd_seconds[0],
        "wall_ratio": seconds[1] / kd_seconds[1],
        "ratio_vanilla_there": (seconds[0] - found["vanilla"]) / kd_seconds[0],
        "ratio_same_looks": seconds[0] / found["taught"] if found["taught"] else float("nan"),
    }
    return {"kd_seconds": kd_seconds, "search_seconds": seconds, "parts": found, **ratios, **described(outcome)}


def described(outcome: Outcome) -> dict[str, Any]:
    """Return what a search trained, and what the same runs would have cost one by one."""
    record = outcome.record
    runs = [*record.baselines, *record.trials]
    full = max(run.epochs for run in runs)
    taught = next((run for run in record.baselines if run.title == TAUGHT), record.trials[0])
    alone = sum(run.seconds * full / run.epochs for run in runs if run.title != TAUGHT)
    return {
        "kd_epochs": full,
        "epochs_trained": sum(run.epochs - run.shared_epochs for run in runs),
        "alone_ratio": alone / taught.seconds,
        "flags": "; ".join(
            f"{next(iter(trial.values.values())):g}: "
            + (", ".join(f"{item.name} ({item.epoch})" for item in trial.flagged) or "none")
            + (f", pruned after {trial.pruned_after}" if trial.pruned_after else "")
            for trial in record.trials
        ),
        "score_spread": [trial.score for trial in record.trials],
    }


if __name__ == "__main__":
    main()
