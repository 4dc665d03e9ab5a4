"""The data set of a session: what is trained on, the hold-out, and the test data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from tllm_plugin.core.data_identity import DataIdentity
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.worker_errors import plain_errors
from tllm_plugin.data.bundle import check_several_classes
from tllm_plugin.data.loaders import EvalLoader
from tllm_plugin.data.shards import WHOLE
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.own_loop.labels import check_map_style, class_names_of, image_of, read_labels, with_transform
from tllm_plugin.hosts.random_state import same_random_numbers
from tllm_plugin.hosts.shown_data import part_shown, shown_identity
from tllm_plugin.hosts.single_rows import without_single_row

#: Images per batch when the hold-out or the test data are predicted.
EVAL_BATCH_SIZE = 128


class SessionData:
    """The `TrainingData` of a map-style data set of the user's.

    Args:
        dataset: Its items are `(image, label, ...)`, or mappings with keys such as `image` and `label`.
        holdout_transform: Transform of the hold-out, for data sets with an attribute `transform`; None reads the
            hold-out as the training images are read.

    Raises:
        ConfigError: The data set is iterable only, has no labels, or labels that are not 0 to C - 1.
        DataError: All samples are of one class.
    """

    def __init__(self, dataset: Any, holdout_transform: Any = None) -> None:
        check_map_style("train_set", dataset)
        self.dataset = dataset
        self.labels = read_labels("train_set", dataset)
        check_several_classes(self.labels, "the samples of `train_set`")
        self.class_names = class_names_of("train_set", dataset, self.labels)
        self.holdout_transform = holdout_transform
        self._view = dataset if holdout_transform is None else with_transform(dataset, holdout_transform)
        #: Options of the user's loader that apply to the hold-out and the test data, too.
        self.reading: dict[str, Any] = {}

    @cached_property
    def identity(self) -> DataIdentity:
        """Identity of the data to store with the run, as far as the data set shows it."""
        shown = shown_identity(self.dataset, None, self.class_names, self.holdout_transform)
        return DataIdentity(
            class_names=self.class_names,
            train=part_shown(self.dataset, self.labels, len(self.class_names)),
            image_size=shown.image_size,
            mean=shown.mean,
            std=shown.std,
        )

    def train_loader(self, indices: Tensor) -> TrainRows:
        """Return the samples to train on; `Session.loader` makes batches of them."""
        return TrainRows(self.dataset, indices.tolist())

    def holdout_loader(self, indices: Tensor) -> EvalBatches:
        """Return un-augmented batches `(image, label)` of `indices`, in order."""
        return EvalBatches(self._view, self.labels, indices, self.reading)

    def example(self) -> Tensor:
        """Return the images of two samples as the hold-out is read, (2, ...), the same on every rank."""
        batches = self.holdout_loader(torch.arange(2))
        batches.restrict(WHOLE)
        return next(iter(batches))[0]

    def test_batches(self, dataset: Any) -> tuple[EvalBatches, Tensor]:
        """Return batches `(image, label)` of a whole test set, in order, and its labels.

        Raises:
            ConfigError: The data set is iterable only, has no labels, or labels of other classes.
        """
        check_map_style("test_set", dataset)
        labels = read_labels("test_set", dataset)
        if int(labels.max()) >= len(self.class_names):
            raise ConfigError(
                f"Expected `test_set` to have the {len(self.class_names)} classes of `train_set`, but got a label "
                f"{int(labels.max())}"
            )
        return EvalBatches(dataset, labels, torch.arange(len(labels)), self.reading), labels


class TrainRows(Subset[Any]):
    """The samples that are trained on; an index with every sample is its position in the whole data set.

    Args:
        dataset: The whole data set.
        indices: Positions of the samples.
        with_index: Whether a sample is `(..., index)`, or a mapping with `index`.
    """

    def __init__(self, dataset: Any, indices: Sequence[int], with_index: bool = False) -> None:
        super().__init__(dataset, indices)
        self.with_index = with_index

    def __getitem__(self, place: Any) -> Any:
        return self._with(self.dataset[self.indices[place]], place)

    def __getitems__(self, places: list[int]) -> list[Any]:
        return [self._with(item, place) for item, place in zip(super().__getitems__(places), places, strict=True)]

    def _with(self, item: Any, place: int) -> Any:
        if not self.with_index:
            return item
        index = self.indices[place]
        return {**item, "index": index} if isinstance(item, Mapping) else (*item, index)


class _Pairs(Dataset[Any]):
    def __init__(self, dataset: Any, labels: Tensor) -> None:
        self.dataset = dataset
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return image_of(self.dataset[index]), self.labels[index]


class EvalBatches(EvalLoader):
    """Batches `(image, label)` of some samples in their order; with several ranks, those of this rank.

    No random number of the run is drawn: a transform that draws some gets the same ones every time.

    Args:
        dataset: The whole data set.
        labels: (N,) int64, its labels.
        indices: (n,) int64, positions of the samples.
        reading: Options of `DataLoader`, read when the iteration begins.
    """

    def __init__(self, dataset: Any, labels: Tensor, indices: Tensor, reading: Mapping[str, Any]) -> None:
        super().__init__(indices, batch_size=EVAL_BATCH_SIZE)
        self._pairs = _Pairs(dataset, labels)
        self._reading = reading
        self.restrict(processes.shard())

    def gather(self, values: Tensor) -> Tensor:
        return processes.summed(self.in_place(values))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = [batch.tolist() for batch in self._own(self._rows)]
        loader = DataLoader(
            self._pairs, batch_sampler=batches, generator=torch.Generator().manual_seed(0), **self._reading
        )
        with same_random_numbers(0), plain_errors():
            for image, label in loader:
                if not isinstance(image, Tensor):
                    raise ConfigError(
                        f"Expected the images of the data set to be tensors of one shape, but got a "
                        f"{type(image).__name__}; give the data set a `transform` that makes them so"
                    )
                yield image, label


class SessionLoader(DataLoader[Any]):
    """The loader of a session; it tells the session when it is iterated over."""

    #: Called when an iteration begins.
    taken: Callable[[], None] = staticmethod(lambda: None)

    def __iter__(self) -> Any:
        self.taken()
        return super().__iter__()


def make_loader(rows: TrainRows, taken: Callable[[], None], options: Mapping[str, Any]) -> SessionLoader:
    """Return a `DataLoader` over the samples to train on; no batch has a single row.

    With several ranks and no sampler of the user's, every rank draws its own samples.

    Args:
        rows: The samples.
        taken: Called whenever an iteration begins.
        options: Keyword arguments of `DataLoader`.

    Raises:
        ConfigError: PyTorch refuses the options.
    """
    options = dict(options)
    if processes.world_size() > 1 and not {"sampler", "batch_sampler"} & set(options):
        options["sampler"] = DistributedSampler(
            rows,
            num_replicas=processes.world_size(),
            rank=processes.rank(),
            shuffle=bool(options.pop("shuffle", False)),
            drop_last=bool(options.get("drop_last", False)),
        )
    try:
        loader = SessionLoader(rows, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Expected keyword arguments of torch.utils.data.DataLoader, but {error}") from None
    loader.taken = taken
    if "batch_sampler" not in options:
        without_single_row(loader)
    return loader
