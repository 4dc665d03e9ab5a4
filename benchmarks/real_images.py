"""What KD, TLLM, ESKD and LS do to a student on a folder of real images, per class and with its null.

    python benchmarks/real_images.py --path FOLDER --out output/real --seeds 2

One teacher (seed 0), one hold-out; per seed a vanilla student and one student per method. `naive` is TLLM that asks for
no evidence. `eskd` and `eskd-naive` withdraw the teacher from every class at the epoch that gives the same amount of
teaching (class-epochs) as the `tllm` or `naive` run of that seed; where that run flagged nothing, they would be `kd`
and are left out. Runs of one seed share the epochs before their first flag, so that the seconds per epoch of a run are
partly those of its `kd` run. Runs that are in `--out` already are used or continued, so the command can be stopped and
started again; at the end it prints everything that it knows. Every count of hurt classes stands beside its null: the
next vanilla seed against the same vanilla student.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from scipy.stats import spearmanr
from yacs.config import CfgNode

from tllm_plugin.analysis.results import TestResult, change_between
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.prerequisites import log_folder, prerequisite
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.shared_prefix import run_sharing

#: ESKD with the same amount of teaching -> the run whose amount that is.
MATCHED = {"eskd": "tllm", "eskd-naive": "naive"}
#: Their runs share no epochs with KD's.
OTHER_LOSSES = ("kd", "srrl", "cid", "sftn")
NAIVE = (
    *("TLLM.DETECTOR.SCORE", "reciprocal_rank"),
    *("TLLM.DETECTOR.FDR", "1", "TLLM.DETECTOR.ETA", "0.1"),
)
METHODS: dict[str, tuple[str, ...]] = {
    "kd": ("TLLM.DETECTOR.TYPE", "none"),
    "tllm": (),
    "eskd": ("TLLM.DETECTOR.TYPE", "after"),
    "naive": (*NAIVE, "TLLM.BALANCE", "False"),
    "naive-weight0.25": (*NAIVE, "TLLM.BALANCE", "False", "TLLM.CE_WEIGHT", "0.25"),
    "naive-balanced": (*NAIVE, "TLLM.BALANCE", "True"),
    "eskd-naive": ("TLLM.DETECTOR.TYPE", "after"),
    "eskd70": ("TLLM.DETECTOR.TYPE", "after", "TLLM.DETECTOR.AFTER_FRACTION", "0.7"),
    "ls": ("TLLM.DETECTOR.TYPE", "all"),
    "srrl": ("DISTILLER.TYPE", "SRRL", "TLLM.DETECTOR.TYPE", "none"),
    # The paper has no context in 20 of 240 epochs.
    "cid": ("DISTILLER.TYPE", "CID", "CID.WARMUP_EPOCHS", "2", "TLLM.DETECTOR.TYPE", "none"),
    "sftn": ("TLLM.DETECTOR.TYPE", "none"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, metavar="FOLDER", help="train/ and val/, one folder per class")
    parser.add_argument("--out", default="output/real", metavar="FOLDER", help="where the runs are")
    parser.add_argument("--cfg", default="tllm/embedded/imagefolder_res20_res8.yaml")
    parser.add_argument("--seeds", type=int, default=2, help="at least 2: one vanilla student is another one's null")
    parser.add_argument("--method-seeds", type=int, metavar="N", help="train the methods for the first N seeds only")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--jobs", type=int, default=1, help="seeds that are trained at once, one thread each if several"
    )
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    options = parser.parse_args()
    options.seeds = max(options.seeds, 2)
    log()
    # A checkpoint per epoch, so that the runs can share what comes before their first flag.
    base = ["LOG.PREFIX", options.out, "DATASET.PATH", options.path, "LOG.SAVE_CHECKPOINT_FREQ", "1", *options.opts]
    runs = {(stage, 0): train_teacher(base, options, stage) for stage in stages(options)}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"), initializer=log) as pool:
        for found in pool.map(train_seed, range(options.seeds), *([x] * options.seeds for x in (base, options))):
            runs |= found
    order = ["teacher", "sftn teacher", "vanilla", *METHODS]
    report(dict(sorted(runs.items(), key=lambda item: order.index(item[0][0]))), options)


def log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")


def stages(options: argparse.Namespace) -> list[str]:
    """Return the teachers that the methods need."""
    return ["teacher", *(["sftn teacher"] if "sftn" in options.methods else [])]


def train_teacher(base: list[str], options: argparse.Namespace, stage: str) -> RunFolder:
    """Return the finished teacher."""
    cfg = teacher_config(base, options, stage)
    return recipe.ensure_trained(cfg, load_bundle(cfg))


def teacher_config(base: list[str], options: argparse.Namespace, stage: str) -> CfgNode:
    """Return the config of a teacher, of seed 0: all students have the same one."""
    cfg = load_config(options.cfg, base)
    epochs = cfg.DISTILLER.TEACHER_EPOCHS or cfg.SOLVER.EPOCHS
    if stage == "sftn teacher":
        return prerequisite(cfg, cfg.DISTILLER.TEACHER, epochs, "sftn", branches_of=cfg.DISTILLER.STUDENT)
    return prerequisite(cfg, cfg.DISTILLER.TEACHER, epochs, "teacher")


def train_seed(seed: int, base: list[str], options: argparse.Namespace) -> dict[tuple[str, int], RunFolder]:
    """Return one seed's finished runs by method and seed; train those that are missing."""
    if options.jobs > 1:
        torch.set_num_threads(1)
    cfg = load_config(options.cfg, [*base, "EXPERIMENT.SEED", str(seed)])
    epochs = cfg.SOLVER.EPOCHS
    bundle = load_bundle(cfg)
    vanilla = recipe.ensure_trained(prerequisite(cfg, cfg.DISTILLER.STUDENT, epochs, "vanilla"), bundle)
    runs = {("vanilla", seed): vanilla}
    if options.method_seeds is not None and seed >= options.method_seeds:
        return runs
    for method in options.methods:
        stage = "sftn teacher" if method == "sftn" else "teacher"
        teacher = log_folder(teacher_config(base, options, stage))
        checkpoint = ("DISTILLER.TEACHER_CHECKPOINT", str(teacher / "student_latest"))
        more = list(METHODS[method])
        if method in MATCHED:
            share = taught_share(runs[MATCHED[method], seed], epochs)
            if share == 1.0:
                continue  # The same run as KD.
            more += ["TLLM.DETECTOR.AFTER_FRACTION", f"{share:.4f}"]
        named = ["EXPERIMENT.NAME", f"{method}-seed{seed}", "EXPERIMENT.SEED", str(seed)]
        cfg = load_config(options.cfg, [*base, *checkpoint, *named, *more])
        taught = runs.get(("kd", seed))
        shares = taught is not None and method not in OTHER_LOSSES
        runs[method, seed] = run_sharing([taught], cfg, bundle) if shares else recipe.ensure_trained(cfg, bundle)
    return runs


def taught_share(run: RunFolder, epochs: int) -> float:
    """Return the share of all class-epochs in which a run's classes had their teacher."""
    return statistics.mean(
        (epochs if item.epoch_flagged is None else item.epoch_flagged) / epochs for item in run.read_flags().classes
    )


def report(runs: dict[tuple[str, int], RunFolder], options: argparse.Namespace) -> None:
    """Print accuracies, hurt classes with their null, costs, flags, and whether the per-class changes repeat."""
    metrics = {key: run.read_metrics() for key, run in runs.items()}
    results = {key: TestResult.from_metrics(record) for key, record in metrics.items()}
    seeds = sorted(seed for method, seed in runs if method == "vanilla")
    print(
        f"\n{' '.join([options.cfg, *options.opts])}: {len(metrics['vanilla', 0].class_total)} classes, "
        f"{sum(metrics['vanilla', 0].class_total)} test images, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    print(
        "\n| run | seed | test accuracy | classes with delta acc < 0 (null) | < -5 points (null) | flagged | "
        "taught | s / epoch, median | peak MiB |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for (method, seed), record in metrics.items():
        cells = [method, str(seed), f"{record.test_accuracy:.1%}", "", "", "", ""]
        if method in METHODS:
            change = change_between(results["vanilla", seed], results[method, seed])
            null = change_between(results["vanilla", seed], results["vanilla", seeds[(seed + 1) % len(seeds)]])
            flags = runs[method, seed].read_flags()
            share = taught_share(runs[method, seed], record.epochs_done)
            cells[3:] = [
                f"{change.hurt.sum()} ({null.hurt.sum()})",
                f"{change.largely_hurt.sum()} ({null.largely_hurt.sum()})",
                str(len(flags.flagged)),
            ]
            cells.append(f"{share:.0%}")
        seconds = statistics.median(record.seconds_per_epoch)
        cells += [f"{seconds:.1f}", f"{(record.peak_memory_bytes or 0) / 2**20:.0f}"]
        print(f"| {' | '.join(cells)} |")
    print("\n| method | test accuracy, mean +- std over seeds |\n| --- | --- |")
    for method in dict.fromkeys(method for method, _ in runs):
        values = [record.test_accuracy or 0.0 for (name, _), record in metrics.items() if name == method]
        deviation = f" +- {np.std(values, ddof=1):.2%}" if len(values) > 1 else ""
        print(f"| {method} | {np.mean(values):.2%}{deviation} |")
    names = [item.name for item in runs["vanilla", 0].read_flags().classes]
    for (method, seed), run in runs.items():
        if method not in METHODS:
            continue
        delta = change_between(results["vanilla", seed], results[method, seed]).delta
        order = np.argsort(delta)
        worst = ", ".join(f"{names[c]} {delta[c]:+.2f}" for c in order[:5])
        best = ", ".join(f"{names[c]} {delta[c]:+.2f}" for c in order[:-6:-1])
        print(f"\n{method}, seed {seed}: worst {worst}; best {best}")
        flags = run.read_flags()
        weighed = [item for item in flags.classes if item.e_value is not None]
        if weighed:
            strongest = sorted(weighed, key=lambda item: -(item.e_value or 0.0))[:5]
            shown = ", ".join(f"{item.name} {item.e_value:.3g} (drop {item.drop:+.2f})" for item in strongest)
            drops = [item.drop or 0.0 for item in weighed]
            found = spearmanr(drops, -delta).statistic
            print(f"  strongest evidence: {shown}; rank correlation of drop and -delta acc: {found:.2f}")
            print(f"  flagged {flags.flagged} {flags.reason}")
    if len(seeds) > 1:
        print("\nRank correlation of the per-class delta acc of two seeds, each against its own vanilla student:")
        for method in METHODS:
            if (method, 0) in runs and (method, 1) in runs:
                first, second = (change_between(results["vanilla", s], results[method, s]).delta for s in (0, 1))
                print(f"  {method} {spearmanr(first, second).statistic:.2f}")


if __name__ == "__main__":
    main()
