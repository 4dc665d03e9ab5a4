"""Forks of mdistiller, kind by kind: each a stand-in that differs in one respect, trained by its own script."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
import yaml

from tests.hosts.digits_runs import assert_equal
from tests.hosts.mdistiller_stand_in import CONFIG, train, write_host
from tllm_plugin.runs.run_folder import RunFolder

ENGINE, TRAINER = "mdistiller/engine/__init__.py", "mdistiller/engine/trainer.py"
DISTILLERS, DATASET, SCRIPT = "mdistiller/distillers/__init__.py", "mdistiller/dataset/__init__.py", "tools/train.py"


def run_of(root: Path, done: CompletedProcess[str], *, epochs: int = 2) -> RunFolder:
    """Return the one run below a host, which has to be done."""
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = root.rglob("flags.json")
    run = RunFolder(path.parent)
    flags = run.read_flags()
    assert flags.epochs == epochs and flags.flagged == (1, 3)
    assert run.read_metrics().epochs_done == epochs and run.read_metrics().tested
    return run


# Other losses for a loop of its own, whose name the script completes: three places read what the config names.
READS_ITS_TRAINER = {
    ENGINE: [('{"base": BaseTrainer}', '{"base": BaseTrainer, "two": TwoLosses, "two_aug": TwoLosses}')],
    TRAINER: [
        ("        sum(loss.mean() for loss in losses.values()).backward()", "        self.backward(losses)"),
        (
            "    def train_iter",
            "    def backward(self, losses):\n        sum(loss.mean() for loss in losses.values()).backward()\n\n"
            "    def train_iter",
        ),
    ],
    DISTILLERS: [
        (
            "    def losses(self, logits, taught, target):\n",
            "    def losses(self, logits, taught, target):\n"
            '        if self.cfg.SOLVER.TRAINER == "two_aug":\n'
            '            return {"loss_ce": F.cross_entropy(logits, target), "loss_two": F.l1_loss(logits, taught)}\n',
        )
    ],
    SCRIPT: [("    cfg.freeze()\n", '    cfg.SOLVER.TRAINER += "_aug"\n    cfg.freeze()\n')],
}
_TWO_LOSSES = """

class TwoLosses(BaseTrainer):
    def backward(self, losses):
        (losses["loss_ce"] + losses["loss_two"]).backward()
"""


@pytest.mark.parametrize("spelling", ["on", "first"])
def test_the_hosts_trainer_stays_where_the_host_reads_it(spelling: str, tmp_path: Path) -> None:
    named = {"on": "SOLVER: {TRAINER: two}\n", "first": "SOLVER: {TRAINER: tllm}\n"}[spelling]
    config = CONFIG + named
    if spelling == "first":
        config = config.replace("ON: true", "TRAINER: two")
    root = write_host(tmp_path, READS_ITS_TRAINER, config)
    trainer = root / TRAINER
    trainer.write_text(trainer.read_text() + _TWO_LOSSES)
    engine = root / ENGINE
    engine.write_text(engine.read_text().replace("import BaseTrainer", "import BaseTrainer, TwoLosses"))
    run = run_of(root, train(root))
    # What is recorded is the first spelling, whichever was used.
    recorded = yaml.safe_load(run.read_config())
    assert (recorded["SOLVER"]["TRAINER"], recorded["TLLM"]["TRAINER"]) == ("tllm", "two_aug")


OTHER_TRAINER = {
    ENGINE: [("trainer_dict", "_classes")],
    TRAINER: [
        ("BaseTrainer", "Trainer"),
        (
            "self, experiment_name, distiller, train_loader, val_loader, cfg)",
            "self, project, resume, distiller, train_loader, val_loader, num_classes, cfg)",
        ),
        ("cfg.LOG.PREFIX, experiment_name", 'cfg.LOG.PREFIX, project, "own"'),
        ("        self.tf_writer = SummaryWriter(self.log_path)\n", ""),
        ('"latest"', '"last.pth"'),
        ("        self.save(epoch)\n", "        self.save(epoch)\n        self.told = epoch\n"),
        ("self.optimizer.step()\n", "self.optimizer.step()\n        return logits, losses\n"),
        ("            self.train_iter(data, epoch)\n", "            logits, losses = self.train_iter(data, epoch)\n"),
    ],
    "mdistiller/models/__init__.py": [("cifar_model_dict", "cifar100_model_dict")],
    SCRIPT: [
        ("from mdistiller.engine import trainer_dict", "from mdistiller.engine.trainer import Trainer"),
        ("cifar_model_dict", "cifar100_model_dict"),
        (
            "trainer_dict[cfg.SOLVER.TRAINER](name, distiller, train_loader, val_loader, cfg)",
            'Trainer("mine", args.resume, distiller, train_loader, val_loader, num_classes, cfg=cfg)',
        ),
    ],
}
OTHER_TRAINER[ENGINE].append(("BaseTrainer", "Trainer"))


def test_a_trainer_with_another_signature_and_without_much_else(tmp_path: Path) -> None:
    root = write_host(tmp_path, OTHER_TRAINER)
    run = run_of(root, train(root))
    assert run.log_folder.name == "own" and (run.log_folder / "last.pth").exists()


ITERATIONS_ONLY = {
    TRAINER: [
        ("            self.train_epoch(epoch)\n\n    def train_epoch(self, epoch):\n", ""),
        ("        self.distiller.train()\n", "            self.distiller.train()\n"),
        ("        for data in self.train_loader:\n", "            for data in self.train_loader:\n"),
        ("            self.train_iter(data, epoch)\n", "                self.train_iter(data, epoch)\n"),
        ("        self.save(epoch)\n", "            self.save(epoch)\n"),
        ("        if os.environ", "            if os.environ"),
        ("            os._exit(9)", "                os._exit(9)"),
    ]
}


@pytest.mark.parametrize("edits", [{}, ITERATIONS_ONLY], ids=["epochs", "iterations only"])
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
    edits: dict[str, list[tuple[str, str]]], tmp_path: Path
) -> None:
    whole = run_of(write_host(tmp_path / "whole", edits), train(tmp_path / "whole"))
    root = write_host(tmp_path / "killed", edits)
    assert train(root, KILLED_AFTER="1").returncode == 9
    resumed = run_of(root, train(root, "--resume"))
    states = [torch.load(run.log_folder / "latest", weights_only=True) for run in (whole, resumed)]
    assert_equal(*states)
    assert resumed.flags_json.read_bytes() == whole.flags_json.read_bytes()


def test_a_checkpoint_that_the_host_does_not_find_is_told_in_a_line(tmp_path: Path) -> None:
    root = write_host(tmp_path, {TRAINER: [('self.log_path, "latest"))\n\n', 'self.log_path, "newest"))\n\n')]})
    run_of(root, train(root))
    done = train(root, "--resume")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "from which the host's trainer resumes, to exist" in done.stderr and "newest" in done.stderr


OWN_SCRIPT = {
    SCRIPT: [
        (
            '    parser.add_argument("opts"',
            '    parser.add_argument("--logit-stand", action="store_true")\n'
            '    parser.add_argument("--base-temp", type=float, default=1.0)\n    parser.add_argument("opts"',
        ),
        ("    cfg.freeze()\n", "    assert args.logit_stand and args.base_temp == 2.0 and cfg.SOLVER.EPOCHS == 3\n"),
    ]
}


def test_another_script_with_options_of_its_own_that_never_freezes(tmp_path: Path) -> None:
    root = write_host(tmp_path, OWN_SCRIPT)
    (root / "tools" / "train.py").rename(root / "tools" / "train_own.py")
    done = train(root)
    assert done.returncode == 2 and "name one with --script: tools/train_own.py" in done.stderr
    words = ("--script", "tools/train_own.py", "--", "--logit-stand", "--base-temp", "2.0", "SOLVER.EPOCHS", "3")
    run_of(root, train(root, *words), epochs=3)


LATE = {
    SCRIPT: [
        ("    cfg.freeze()\n", ""),
        ("    train_loader, val_loader,", "    cfg.SOLVER.EPOCHS = 3\n    cfg.freeze()\n    train_loader, val_loader,"),
    ]
}


def test_a_config_that_is_changed_and_frozen_late(tmp_path: Path) -> None:
    run_of(tmp_path, train(write_host(tmp_path, LATE)), epochs=3)


# Losses that the trainer reads by name, two of them with one value per row, each with a step of its own.
READS_LOSSES_BY_NAME = {
    TRAINER: [
        (
            "        sum(loss.mean() for loss in losses.values()).backward()\n",
            '        assert set(losses) == {"loss_task", "loss_near", "loss_far"}\n'
            '        assert losses["loss_near"].shape == losses["loss_far"].shape == (len(target), 1)\n'
            '        for name in ("loss_far", "loss_near", "loss_task"):\n'
            "            losses[name].mean().backward(retain_graph=True)\n",
        )
    ],
    DISTILLERS: [
        (
            '        return {"loss_ce": F.cross_entropy(logits, target), "loss_kd": F.mse_loss(logits, taught)}',
            '        near, far = (logits - taught).pow(2).sort(1).values.tensor_split(2, 1)\n'
            '        of_rows = {"loss_near": near.mean(1, keepdim=True), "loss_far": far.mean(1, keepdim=True)}\n'
            '        return {"loss_task": F.cross_entropy(logits, target), **of_rows}',
        )
    ],
}  # fmt: skip


def test_losses_per_row_that_the_trainer_reads_by_name(tmp_path: Path) -> None:
    run_of(tmp_path, train(write_host(tmp_path, READS_LOSSES_BY_NAME)))


def test_a_type_that_is_tested_the_other_way_round(tmp_path: Path) -> None:
    edits = {SCRIPT: [("    cfg.freeze()\n", '    assert "KD" not in cfg.DISTILLER.TYPE\n    cfg.freeze()\n')]}
    config = CONFIG.replace("TYPE: KD", "TYPE: TLLM").replace("ON: true", "ON: true, DISTILLER: KD")
    done = train(write_host(tmp_path, edits, config))
    assert done.returncode == 2 and "a type that the host does not treat by name, but got 'KD'" in done.stderr


OTHER_NAMES = {
    TRAINER: [("self.distiller(image=image, target=target, epoch=epoch)", "self.distiller(x=image, label=target)")],
    DISTILLERS: [("def forward_train(self, image, target, **kwargs)", "def forward_train(self, x, label)")]
    + [("self.student(image)\n", "self.student(x)\n"), ("self.teacher(image)", "self.teacher(x)")]
    + [
        ("taught, target)\n\n", "taught, label)\n\n"),
    ],
}


def test_other_names_of_views_and_labels(tmp_path: Path) -> None:
    run_of(tmp_path, train(write_host(tmp_path, OTHER_NAMES)))


@pytest.mark.parametrize(
    ("edits", "told"),
    [
        ([("self.student, self.teacher, self.cfg = student", "self.net, self.teacher, self.cfg = student"),
          ("self.student", "self.net")], "to have an attribute `student`"),
        ([("return logits, self.losses", "return logits + 1, self.losses")], "logits"),
        ([("logits, _ = self.student(image)", "logits = self.student.fc(self.student.conv(image).mean((2, 3)))")],
         "to call `student` (as a whole"),
    ],
    ids=["no student", "predicts by more than its student", "a student in parts"],
)  # fmt: skip
def test_what_cannot_be_wrapped_is_refused_before_a_step(
    edits: list[tuple[str, str]], told: str, tmp_path: Path
) -> None:
    done = train(write_host(tmp_path, {DISTILLERS: edits}))
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert not list(tmp_path.rglob("latest"))


def test_a_dummy_teacher_is_none(tmp_path: Path) -> None:
    edits = [("class Vanilla(Distiller):\n", "class Vanilla(Distiller):\n    def __init__(self, student):\n"
              "        super().__init__(student, nn.Identity())\n\n")]  # fmt: skip
    config = CONFIG.replace("TYPE: KD", "TYPE: NONE")
    run_of(tmp_path, train(write_host(tmp_path, {DISTILLERS: edits}, config)))


def test_wandb_that_does_not_start(tmp_path: Path) -> None:
    start = "    import wandb\n    if cfg.LOG.WANDB:\n        wandb.init(project='p')\n    assert not cfg.LOG.WANDB\n"
    root = write_host(tmp_path, {SCRIPT: [("    torch.manual_seed(0);", f"{start}    torch.manual_seed(0);")]})
    (root / "wandb.py").write_text("def init(**options):\n    raise RuntimeError('no login')\n")
    done = train(root)
    run_of(root, done)
    assert "wandb does not start (no login)" in " ".join(done.stderr.split())


_SET_EPOCH = "        self.train_loader.sampler.set_epoch(epoch)\n"
_DDP = "torch.nn.parallel.DistributedDataParallel"
PARALLEL = {
    DATASET: [
        ("import DataLoader, Dataset", "import DataLoader, Dataset, DistributedSampler"),
        (
            "DataLoader(Images(size is sizes[0]), batch_size=size, shuffle=False) for size in sizes]",
            "DataLoader(images, batch_size=size, sampler=DistributedSampler(images, shuffle=images.train))"
            " for size, images in ((sizes[0], Images(True)), (sizes[1], Images(False)))]",
        ),
    ],
    TRAINER: [
        ("        self.distiller.train()\n", "        self.distiller.train()\n" + _SET_EPOCH),
        (
            '        image, target, index = data\n',
            '        image, target, index = data\n'
            '        with open(f"rows-{torch.distributed.get_rank()}", "a") as out:\n'
            '            print(*index.tolist(), file=out)\n',
        ),
        ("        self.save(epoch)\n", "        if torch.distributed.get_rank() == 0:\n            self.save(epoch)\n"),
    ],
    SCRIPT: [
        ("torch.nn.DataParallel(build(cfg))", f"{_DDP}(build(cfg), device_ids=[rank], find_unused_parameters=True)"),
        (
            "    torch.manual_seed(0);",
            '    rank = int(os.environ["LOCAL_RANK"])\n    torch.cuda.set_device(rank)\n'
            '    torch.distributed.init_process_group("nccl")\n    torch.manual_seed(0);',
        ),
    ],
}  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="two processes of this host need two GPUs")
def test_two_processes_share_what_the_holdout_leaves(tmp_path: Path) -> None:
    root = write_host(tmp_path, PARALLEL)
    start = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    run = run_of(root, train(root, start=start))
    rows = [list(map(int, (root / f"rows-{rank}").read_text().split())) for rank in range(2)]
    left = set(range(80)) - set(run.read_split().holdout)
    assert set(rows[0]) | set(rows[1]) == left and len(rows[0]) == len(rows[1]) == len(left)
    # Every epoch of either process has half of the rows, the other half in the other process.
    assert not set(rows[0][: len(left) // 2]) & set(rows[1][: len(left) // 2])
    assert run.read_metrics().class_total == (20,) * 4
