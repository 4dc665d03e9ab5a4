"""Run TLLM around any host's loop: hold-out, wrapper, detector, and the files written after each epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from tllm_plugin.core.contract import teacher_of
from tllm_plugin.core.curves import Curves
from tllm_plugin.core.detectors import Detector
from tllm_plugin.core.escaping import visible
from tllm_plugin.core.holdout import Split, split
from tllm_plugin.core.outputs import logits_of
from tllm_plugin.core.policies import Decision
from tllm_plugin.core.predictions import Predictions, class_means, predict
from tllm_plugin.core.wrapper import TLLMWrapper
from tllm_plugin.hosts import power, processes
from tllm_plugin.hosts.at_chance import tell_if_at_chance
from tllm_plugin.hosts.best_student import BestStudent
from tllm_plugin.hosts.contract import Batches, TrainingData, Writer
from tllm_plugin.hosts.session_records import flags_record, policy_record
from tllm_plugin.hosts.tensorboard import log_holdout
from tllm_plugin.hosts.tllm_node import build_decision, build_detector
from tllm_plugin.runs.finite import check_finite
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.runs.split_file import SplitRecord

logger = logging.getLogger(__name__)

#: Runs a student over batches, as `predict` does.
PredictStudent = Callable[[Batches], Predictions]


def cut(node: CfgNode, data: TrainingData) -> Split:
    """Cut the hold-outs that a `TLLM` node describes; deterministic in labels and options."""
    return split(
        data.labels,
        node.HOLDOUT.FRACTION,
        node.HOLDOUT.SEARCH_FRACTION,
        seed=node.HOLDOUT.SEED,
        class_names=data.class_names,
    )


class HostSession:
    """Everything that TLLM adds to a run, in the order in which a trainer needs it.

    The constructor cuts the hold-out and wraps the distiller; `open` sets the folder; `catch_up` scores a trained
    epoch, updates the flags and writes the files. All state is saved in the wrapper's checkpoint. A host may save the
    checkpoint before the epoch is scored: after a resume the missing score is computed from the same weights, with the
    same result. With several ranks, each scores a shard of the hold-out, all ranks compute the same flags, and rank 0
    writes.

    Args:
        node: `cfg.TLLM`.
        distiller: The inner distiller.
        data: The host's training data.
        total_epochs: Epochs of the run.

    Raises:
        ConfigError: The hold-out or the detector cannot be created.
        FileFormatError: The teacher's weights contain NaN or infinity.
    """

    def __init__(self, node: CfgNode, distiller: nn.Module, data: TrainingData, total_epochs: int) -> None:
        self.node = node
        self.class_names = data.class_names
        self.data = data.identity
        num_classes = len(data.class_names)
        self.split = cut(node, data)
        self.train_loader = data.train_loader(self.split.train)
        self.holdout_loader = data.holdout_loader(self.split.holdout)
        # Both hold-outs in one pass; the detector's comes first.
        self.scored_loader = data.holdout_loader(torch.cat([self.split.holdout, self.split.search]))
        self.curves = Curves(data.labels[self.split.holdout], num_classes, self.split.holdout)
        # Choices of eta are judged on these. Neither the detector nor the training sees them.
        self.search_curves = Curves(data.labels[self.split.search], num_classes, self.split.search)
        teacher = teacher_of(distiller)
        has_teacher = teacher is not None
        if teacher is not None:
            # Most hosts read its checkpoint themselves.
            check_finite(teacher.state_dict(), "the teacher")
        # It may read files.
        self.detector: Detector = processes.from_main(
            lambda: build_detector(
                node,
                class_names=data.class_names,
                total_epochs=total_epochs,
                holdout=self.curves,
                has_teacher=has_teacher,
                data=self.data,
            )
        )
        #: Why no class can be flagged; empty if one can be.
        self.powerless = power.tell(self.detector, node, torch.bincount(data.labels), total_epochs)
        self.wrapper = TLLMWrapper(
            distiller,
            num_classes,
            label_smoothing=node.LABEL_SMOOTHING if self.detector.smooths_labels else 0.0,
            ce_weight=node.CE_WEIGHT,
            balance=node.BALANCE,
            min_rows=node.MIN_ROWS,
        )
        if self.wrapper.balance is not None and processes.world_size() > 1:
            self.wrapper.balance.add_up = processes.summed
        self.wrapper.carry("curves", self.curves)
        self.wrapper.carry("detector", self.detector)
        if len(self.split.search):
            self.wrapper.carry("search_curves", self.search_curves)
        self.decision: Decision | None = build_decision(node, num_classes, has_teacher=has_teacher)
        if self.decision is not None:
            self.wrapper.carry("policy", self.decision)
            self._policy_loader = data.holdout_loader(self.split.train)
        self._set_weights()
        self._teacher_prediction: Tensor | None = None
        self._last_scored: Predictions | None = None
        self._best: BestStudent | None = None
        self._told_of_few_rows = False
        #: The last epoch whose files this process has written; 0 for none.
        self.written = 0
        self.run: RunFolder | None = None
        #: Callback with the search curves after each scored epoch; an exception stops the run and leaves it resumable.
        self.watch: Callable[[Curves], None] | None = None

    def open(self, log_folder: str) -> RunFolder:
        """Create `<log_folder>/tllm/` on rank 0 and return that folder; later files are written there."""
        if not processes.is_main():
            return RunFolder.inside(log_folder)
        self.run = RunFolder.inside(log_folder).create()
        self.run.write_split(
            SplitRecord(
                holdout=tuple(self.split.holdout.tolist()),
                search_holdout=tuple(self.split.search.tolist()),
                fraction=self.node.HOLDOUT.FRACTION,
                seed=self.node.HOLDOUT.SEED,
                num_classes=len(self.class_names),
            )
        )
        self.run.write_data(self.data)
        self._best = BestStudent(self.run, self.curves, self.data)
        return self.run

    def _set_weights(self) -> None:
        """Set the teaching weights: the policy's, and 0 for flagged classes."""
        if self.decision is None:
            self.wrapper.set_undistillable(self.detector.flags)
        else:
            self.wrapper.set_teaching_weights(self.decision.weights.masked_fill(self.detector.flags, 0.0))

    def decide(self) -> None:
        """Let the policy set the teaching weights if it has not done so yet; call this before training an epoch."""
        if self.decision is None or self.decision.is_made:
            return
        temperature = self.wrapper.mixing_temperature
        # Loaders may draw random numbers, but a policy must not change the random numbers of the run.
        with torch.random.fork_rng(devices=[]):
            predictions = self._ask_teacher(self._policy_loader, temperature)
        strengths = class_means(predictions.kept("true_prob"), predictions.labels, len(self.class_names))
        self.decision.make(strengths, temperature)
        self._set_weights()
        less = self.decision.weights[self.decision.weights < 1]
        logger.info(
            "policy %s at temperature %g: %d of %d classes are taught less, with weights from %.3f on",
            *(self.decision.policy, temperature, len(less), len(self.class_names)),
            float(less.min()) if len(less) else 1.0,
        )

    def catch_up(self, epoch: int, predict_student: PredictStudent, writer: Writer | None = None) -> None:
        """Score `epoch`, update the flags and write the files, skipping what is done already; see `score`."""
        if epoch and epoch not in self.curves.epochs:
            self.score(epoch, predict_student, writer)
            self.write(epoch)
            self.settle()

    def score(self, epoch: int, predict_student: PredictStudent, writer: Writer | None = None) -> None:
        """Score the hold-out after `epoch` and update the flags; write only to TensorBoard.

        Args:
            epoch: The last trained epoch.
            predict_student: Returns the current student's predictions for batches.
            writer: The host's TensorBoard writer.
        """
        if self._best is not None:
            self._best.recover()
        both = self._last_scored = predict_student(self.scored_loader)
        samples = both.part(0, len(self.split.holdout))
        teacher = self._teacher_predictions()
        if teacher is not None:
            samples = samples.beside(teacher)
        self.curves.append(epoch, samples)
        if len(self.split.search):
            self.search_curves.append(epoch, both.part(len(self.split.holdout), len(both.labels)))
        before = self.detector.flags.clone()
        # Judge the recorded, rounded probabilities, so that a replay of the curves gives the same flags.
        flags = self.detector.update(epoch, self.curves.samples_at(epoch))
        if processes.world_size() > 1:
            processes.check_same("hold-out scores and flags", torch.cat([self.curves.digest(), flags.to(torch.uint8)]))
        self._set_weights()
        new = (flags & ~before).nonzero().squeeze(1).tolist()
        if new and self.detector.holdout_count.any():
            logger.info(
                "epoch %d: no teacher from now on for %s", epoch, ", ".join(visible(self.class_names[c]) for c in new)
            )
        per_class = samples.class_accuracy
        if writer is not None:
            log_holdout(
                writer,
                epoch,
                per_class=per_class,
                flags=flags,
                new=new if self.detector.holdout_count.any() else [],
                curves=self.curves,
                reference=self.detector.reference,
                class_names=self.class_names,
                few_rows_steps=self.wrapper.few_rows_steps,
            )
        self._tell_of_few_rows(epoch)
        if self._best is not None:
            self._best.note(epoch, float(per_class.nanmean()), self.wrapper.student, self.wrapper.predictor)
        if self.watch is not None:
            self.watch(self.search_curves)

    def tell_if_at_chance(self, name: str) -> None:
        """Warn if the student's last predictions on the hold-outs are not significantly better than chance.

        Args:
            name: Name of the run, for the message.
        """
        if self._last_scored is not None:
            tell_if_at_chance("trained", name, self._last_scored, "hold-out images")

    def tell_if_powerless(self) -> None:
        """Repeat at the end of the run that no class could have been flagged, if that is so."""
        if self.powerless:
            logger.warning("%s", self.powerless)

    def _tell_of_few_rows(self, epoch: int) -> None:
        """Log once that steps with distillable rows were trained without the teacher because of TLLM.MIN_ROWS."""
        if self.wrapper.few_rows_steps and not self._told_of_few_rows:
            self._told_of_few_rows = True
            logger.info(
                "epoch %d: steps, or parts of them, had fewer than TLLM.MIN_ROWS = %d rows with a teacher and went "
                "without it (%d up to now; tllm/few_rows_steps in TensorBoard counts them)",
                epoch,
                self.wrapper.min_rows,
                self.wrapper.few_rows_steps,
            )

    def write(self, epoch: int, *, kept: bool = False) -> None:
        """Write curves, flags and the best student after `epoch`; see `BestStudent.write`."""
        if self.run is None or self._best is None:
            return
        self._best.write(epoch, kept=kept)
        self.run.write_curves(self.curves.state_dict())
        if len(self.split.search):
            self.run.write_search_curves(self.search_curves.state_dict())
        self.run.write_flags(flags_record(self.detector, self.node, self.class_names, epoch))
        if self.decision is not None:
            self.run.write_policy(policy_record(self.decision, self.class_names))
        self.written = epoch

    def settle(self) -> None:
        """Move the best student into place; call this after the host has written its checkpoint."""
        if self._best is not None:
            self._best.settle()

    def _teacher_predictions(self) -> Tensor | None:
        if self.wrapper.teacher is None:
            return None
        if self._teacher_prediction is None:
            # The teacher is frozen: once is enough.
            predictions = self._ask_teacher(self.holdout_loader)
            tell_if_at_chance("teacher", "the teacher", predictions, "hold-out images")
            self._teacher_prediction = predictions.prediction
        return self._teacher_prediction

    def _ask_teacher(self, loader: Batches, temperature: float = 1.0) -> Predictions:
        """Return the teacher's predictions in evaluation mode, with probabilities at a temperature."""
        teacher: Any = self.wrapper.teacher
        was_training = teacher.training
        teacher.eval()
        # A host's loader leaves the images on the CPU.
        device = next(teacher.parameters()).device
        predictions = predict(
            lambda image: logits_of(teacher(image)) / temperature,
            loader,
            num_classes=len(self.class_names),
            device=device,
        )
        teacher.train(was_training)
        return predictions
