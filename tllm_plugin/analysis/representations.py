"""Compare the features of networks: centred kernel alignment (CKA) per class, and t-SNE."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tllm_plugin.analysis.results import Counts, Vector

Matrix = npt.NDArray[np.floating]

#: Images that a class needs for the unbiased estimate of its CKA.
_FEWEST = 4
#: Points of a t-SNE unless asked otherwise; its cost grows faster than their number.
TSNE_POINTS = 2000


def linear_cka(first: Matrix, second: Matrix) -> float:
    """Return the linear CKA of two networks' features for the same images: about 0 if unrelated, 1 if equal.

    The unbiased estimator is used, because for the few images of a class the usual one is high even for unrelated
    features.

    Args:
        first: (n, D) features.
        second: (n, E) features of the same images.

    Returns:
        CKA; NaN for fewer than 4 images or constant features.

    Source: Kornblith et al., "Similarity of neural network representations revisited" (2019); the estimator: Song et
    al., "Feature selection via dependence maximization" (2012), eq. 4.
    """
    if len(first) < _FEWEST:
        return float("nan")
    grams = [
        np.asarray(features, dtype=np.float64) @ np.asarray(features, dtype=np.float64).T
        for features in (first - first.mean(0), second - second.mean(0))
    ]
    across, own, others = _hsic(grams[0], grams[1]), _hsic(grams[0], grams[0]), _hsic(grams[1], grams[1])
    return float(across / np.sqrt(own * others)) if own > 0 and others > 0 else float("nan")


def _hsic(first: Vector, second: Vector) -> float:
    n = len(first)
    k, m = first - np.diag(np.diag(first)), second - np.diag(np.diag(second))
    total = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2.0 / (n - 2) * (k.sum(0) @ m.sum(0))
    return float(total / (n * (n - 3)))


def class_cka(first: Matrix, second: Matrix, labels: Counts, num_classes: int) -> Vector:
    """Return (C,) `linear_cka` of each class's images; NaN for a class with fewer than 4.

    Args:
        first: (n, D) features.
        second: (n, E) features of the same images.
        labels: (n,) classes of the images.
        num_classes: C.
    """
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(labels, minlength=num_classes))[:-1])
    return np.array([linear_cka(first[rows], second[rows]) for rows in groups])


def tsne(features: Matrix) -> npt.NDArray[np.float32]:
    """Return t-SNE positions (n, 2), which preserve neighbourhoods but neither distances nor sizes of groups.

    Args:
        features: (n, D), n at least 4; reduced to at most 30 principal components first.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    values = np.asarray(features, dtype=np.float32)
    if min(values.shape) > 30:
        values = PCA(30, random_state=0).fit_transform(values)
    perplexity = min(30.0, (len(values) - 1) / 3)
    placed = TSNE(2, perplexity=perplexity, init="pca", max_iter=500, random_state=0).fit_transform(values)
    return np.asarray(placed, dtype=np.float32)
