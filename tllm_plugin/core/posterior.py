"""Estimate the true effect of every class from noisy measurements, by a hierarchical model over classes.

The measured effect of class i is normal around its true effect with a known standard error. The true effects come from
one population: a Student t distribution with 4 degrees of freedom, so that single classes may differ by far more than
the others. Its centre and scale are unknown and are integrated numerically, the centre with a flat prior and the scale
with a half-Cauchy prior (Gelman, "Prior distributions for variance parameters in hierarchical models", 2006). Point
estimates of both, as in empirical Bayes (Stephens, "False discovery rates: a new deal", 2017), would be overconfident
with few classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tllm_plugin.core.errors import ConfigError

# The t distribution with 4 degrees of freedom as a mixture of six normals of these variances with equal weights: 4 over
# the quantiles of the chi-squared distribution at 1/12, 3/12, ... 11/12.
_VARIANCES = torch.tensor(
    [4.19220867, 2.080561931, 1.403797089, 1.019891121, 0.7427669736, 0.4857209761], dtype=torch.float64
)
# The grid over the population's scale and, in standard errors for every scale, over its centre.
_SCALES = 31
_CENTRES = torch.linspace(-3.5, 3.5, 11, dtype=torch.float64)
# Points of the grid with less posterior weight than this fraction of the largest one are left out.
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True, eq=False)
class Posterior:
    """Posterior distribution of the true effect of every class, all in the units of the measurements.

    Args:
        mean: (C,) posterior means.
        std: (C,) posterior standard deviations.
        harm: (C,) probabilities that the effect is negative.
        centre: Posterior mean of the centre of the population.
        scale: Posterior mean of the scale of the population.
    """

    mean: Tensor
    std: Tensor
    harm: Tensor
    centre: float
    scale: float
    _mixture: tuple[Tensor, Tensor, Tensor] = field(repr=False)

    @property
    def false_sign_rate(self) -> Tensor:
        """(C,) probabilities that the effect has the less likely sign (local false sign rate)."""
        return torch.minimum(self.harm, 1.0 - self.harm)

    def below(self, effect: float) -> Tensor:
        """Return the probability of every class that its effect is below a value, (C,)."""
        weights, means, deviations = self._mixture
        return (weights * torch.special.ndtr((effect - means) / deviations)).sum(0).clamp(max=1.0)

    def quantile(self, probability: float) -> Tensor:
        """Return the posterior quantile of every class, (C,).

        Args:
            probability: In (0, 1).
        """
        weights, means, deviations = self._mixture
        low = (means - 10.0 * deviations).amin(0)
        high = (means + 10.0 * deviations).amax(0)
        for _ in range(50):
            middle = 0.5 * (low + high)
            below = (weights * torch.special.ndtr((middle - means) / deviations)).sum(0) < probability
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)


def posterior(effects: Tensor, errors: Tensor, signals: Tensor | None = None) -> Posterior:
    """Compute the posterior of the true effects.

    Args:
        effects: (C,) measured effects; NaN for a class that was not measured.
        errors: (C,) standard errors, positive.
        signals: (C, k) finite quantities that may predict the effects, of any scale. The centre of a class is then
            predicted by ridge regression, whose penalty maximises the marginal likelihood.

    Returns:
        The posterior; its tensors are float64.

    Raises:
        ConfigError: The shapes differ, no class was measured, or an error is not positive.
    """
    x, s = effects.double(), errors.double()
    if x.ndim != 1 or s.shape != x.shape:
        raise ConfigError(
            f"Expected `effects` and `errors` to be vectors of one length, but got {tuple(x.shape)} and "
            f"{tuple(s.shape)}"
        )
    measured = x.isfinite()
    if not measured.any():
        raise ConfigError("Expected at least one class with a measured effect, but got none")
    if not ((s[measured] > 0) & s[measured].isfinite()).all():
        raise ConfigError(f"Expected `errors` to be positive and finite, but got {float(s[measured].min()):g}")
    predicted = torch.zeros_like(x) if signals is None else _predicted(x, s, measured, signals.double())
    x = torch.where(measured, x - predicted, 0.0)
    s = torch.where(measured, s, 1.0)

    # Axes: scale, centre, normal component of the population, class.
    typical = float(s[measured].median())
    top = 4.0 * max(float(x[measured].std(correction=0)), 0.25 * typical)
    scales = torch.linspace(0.0, top, _SCALES, dtype=torch.float64)[:, None, None, None]
    inner = scales.clamp(min=1e-3 * top) ** 2 * _VARIANCES[:, None]
    total = s**2 + inner
    precision = (1.0 / total[..., measured]).mean(2)
    width = precision.sum(-1).rsqrt()
    centres = ((precision * x[measured]).sum(-1) * width**2 + _CENTRES * width)[:, :, None, None]
    logs = torch.where(measured, -0.5 * ((x - centres) ** 2 / total + total.log()), 0.0)
    evidence = logs.logsumexp(2).sum(-1)
    grid = (evidence - evidence.max()).exp() * width
    grid /= 1.0 + (scales[:, :, 0, 0] / typical) ** 2
    grid[0] *= 0.5  # Trapezoidal rule: the grid of scales begins at 0.
    grid /= grid.sum()

    kept = grid > _NEGLIGIBLE * grid.max()
    weights = grid[kept][:, None, None] / grid[kept].sum() * logs.softmax(2)[kept]
    inner = inner.expand(*grid.shape, -1, 1)[kept]
    centre = centres.expand(*grid.shape, 1, 1)[kept]
    share = torch.where(measured, inner / (inner + s**2), 0.0)
    means = centre + share * (x - centre) + predicted
    deviations = torch.where(measured, share * s**2, inner).sqrt()
    weights, means, deviations = (
        part.expand(weights.shape).reshape(-1, len(x)) for part in (weights, means, deviations)
    )
    mean = (weights * means).sum(0)
    return Posterior(
        mean=mean,
        std=(weights * (deviations**2 + (means - mean) ** 2)).sum(0).sqrt(),
        harm=(weights * torch.special.ndtr(-means / deviations)).sum(0).clamp(max=1.0),
        centre=float((grid * centres[:, :, 0, 0]).sum() + predicted.mean()),
        scale=float((grid.sum(1) * scales[:, 0, 0, 0]).sum()),
        _mixture=(weights, means, deviations),
    )


def _predicted(x: Tensor, s: Tensor, measured: Tensor, signals: Tensor) -> Tensor:
    """Return the part of the effects that the signals explain, (C,), with mean zero over the measured classes."""
    if signals.ndim != 2 or len(signals) != len(x) or not signals.isfinite().all():
        raise ConfigError(f"Expected `signals` to be finite, of shape ({len(x)}, k), but got {tuple(signals.shape)}")
    z = signals - signals[measured].mean(0)
    spread = z[measured].std(0, correction=0)
    z = z / torch.where(spread > 0, spread, 1.0)
    known, target = z[measured], x[measured]
    unit = float(target.std(correction=0))
    best, coefficients = -torch.inf, torch.zeros(z.shape[1], dtype=torch.float64)
    for scale in torch.linspace(0.0, 2.0, 21).tolist():
        variance = s[measured] ** 2 + (scale * unit) ** 2
        weight = 1.0 / variance
        centred = target - (weight * target).sum() / weight.sum()
        gram, moment = known.T @ (weight[:, None] * known), known.T @ (weight * centred)
        base = -0.5 * (variance.log().sum() + (weight * centred**2).sum())
        # The coefficients' prior is normal with standard deviation `width`; at 0 the signals are not used.
        for width in [0.0, *(unit * torch.logspace(-1.7, 0.3, 15, dtype=torch.float64)).tolist()]:
            system = torch.eye(z.shape[1], dtype=torch.float64) + width**2 * gram
            solution = width**2 * torch.linalg.solve(system, moment)
            value = float(base - 0.5 * torch.linalg.slogdet(system).logabsdet + 0.5 * moment @ solution)
            if value > best:
                best, coefficients = value, solution
    return z @ coefficients
