"""Whether `TLLM.SPEED: auto` costs accuracy: KD at `auto` and at `off`, paired by seed, on a folder of images.

    python benchmarks/speed_quality.py --path FOLDER --out output/speed --seeds 8

One teacher, trained at `off`. Both runs of a pair have the same initial weights, order and augmentation. The last lines
are the mean difference of test accuracy with its 95 % interval (Student's t over the seeds) and the seconds per epoch.
Finished runs in `--out` are used and unfinished ones continued, so the command can be stopped and started again.
"""

from __future__ import annotations

import argparse
import logging
import statistics

from scipy.stats import t

from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.prerequisites import prerequisite
from tllm_plugin.runs.run_folder import RunFolder

SPEEDS = ("off", "auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, metavar="FOLDER", help="train/ and val/, one folder per class")
    parser.add_argument("--out", default="output/speed", metavar="FOLDER", help="where the runs are")
    parser.add_argument("--cfg", default="tllm/embedded/imagefolder_res20_res8.yaml")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    common = ["LOG.PREFIX", options.out, "DATASET.PATH", options.path, *options.opts, "TLLM.DETECTOR.TYPE", "none"]
    cfg = load_config(options.cfg, common)
    bundle = load_bundle(cfg)
    teacher = prerequisite(cfg, cfg.DISTILLER.TEACHER, cfg.DISTILLER.TEACHER_EPOCHS or cfg.SOLVER.EPOCHS, "teacher")
    checkpoint = recipe.ensure_trained(teacher, bundle).log_folder / "student_latest"
    differences = []
    for seed in range(options.seeds):
        found: dict[str, RunFolder] = {}
        for speed in SPEEDS:
            own = ["EXPERIMENT.SEED", str(seed), "EXPERIMENT.NAME", f"kd-{speed}-seed{seed}", "TLLM.SPEED", speed]
            own += ["DISTILLER.TEACHER_CHECKPOINT", str(checkpoint)]
            found[speed] = recipe.ensure_trained(load_config(options.cfg, [*common, *own]), bundle)
        accuracy = {speed: 100 * (run.read_metrics().test_accuracy or 0) for speed, run in found.items()}
        seconds = {speed: statistics.median(run.read_metrics().seconds_per_epoch) for speed, run in found.items()}
        differences.append(accuracy["auto"] - accuracy["off"])
        print(
            f"seed {seed}: off {accuracy['off']:.2f} % in {seconds['off']:.1f} s per epoch, "
            f"auto {accuracy['auto']:.2f} % in {seconds['auto']:.1f} s per epoch",
            flush=True,
        )
    if len(differences) > 1:
        half = t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
        mean = statistics.mean(differences)
        print(f"auto - off: {mean:+.2f} points, 95 % interval {mean - half:+.2f} to {mean + half:+.2f}")


if __name__ == "__main__":
    main()
