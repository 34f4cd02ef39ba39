"""Chooses how many singular values of a kernel are kept."""

from __future__ import annotations

import numpy as np

Rank = int | float | str
"""A number; a fraction of the energy; or "vbmf"."""


def check_rank(rank: object, argument: str) -> None:
    """Rejects what is no rank.

    Raises:
        ValueError: If `rank` is neither a positive integer, nor in (0, 1), nor "vbmf".
    """
    number = isinstance(rank, (int, float, np.integer, np.floating)) and not isinstance(rank, bool)
    is_count = number and isinstance(rank, (int, np.integer)) and rank >= 1
    is_energy = number and isinstance(rank, (float, np.floating)) and 0 < rank < 1
    if not (is_count or is_energy or rank == "vbmf"):
        raise ValueError(
            f"{argument} must be a positive integer, a share of the energy in (0, 1), or 'vbmf'. "
            f"Received: {argument}={rank!r}"
        )


def chosen_rank(
    rank: Rank,
    values: np.ndarray,
    shape: tuple[int, ...],
    path: str,
    largest: tuple[int, ...] | None = None,
) -> int:
    """Returns the number of singular values to keep, at least 1.

    Args:
        rank: The requested rank.
        values: The singular values, descending.
        shape: Shape of the matrix.
        path: Path of the layer, for the message.
        largest: An integer rank may not exceed all of these; None is the number of `values`.

    Raises:
        ValueError: If a number is larger than the layer allows.
    """
    if isinstance(rank, str):
        return max(1, noise_free_rank(values, shape))
    if isinstance(rank, (float, np.floating)):
        energy = np.cumsum(values**2)
        return int(np.searchsorted(energy, rank * energy[-1]) + 1) if energy[-1] > 0 else 1
    limit = max(largest or (len(values),))
    if rank > limit:
        raise ValueError(
            f"rank={rank} is more than layer {path!r} can have, which is {limit}. Name a smaller "
            "one for it: rank={glob: rank}."
        )
    return min(int(rank), len(values))


def noise_free_rank(values: np.ndarray, shape: tuple[int, ...]) -> int:
    """Returns how many singular values stand out of noise (empirical VBMF, closed form).

    The variance of the noise minimizes the free energy.

    Args:
        values: All singular values, descending.
        shape: Shape of the matrix.

    References:
        Nakajima et al. 2013, "Global analytic solution of fully-observed variational Bayesian
        matrix factorization", JMLR 14, theorem 2 and corollary 2.
    """
    from scipy.optimize import minimize_scalar

    rows, columns = min(shape), max(shape)
    squares = np.maximum(np.asarray(values, np.float64) ** 2, 1e-30)
    if squares.sum() < 1e-20:
        return 0
    ratio = rows / columns
    edge = 2.5129 * np.sqrt(ratio)
    limit = (1 + edge) * (1 + ratio / edge)

    def energy(variance: float) -> float:
        x = squares / (columns * variance)
        above, below = x[x > limit], x[x <= limit]
        centered = above - (1 + ratio)
        tau = 0.5 * (centered + np.sqrt(centered**2 - 4 * ratio))
        signal = np.sum(above - tau) + np.sum(np.log((tau + 1) / above))
        signal += ratio * np.sum(np.log(tau / ratio + 1))
        return float(np.sum(below - np.log(below)) + signal)

    most = min(int(np.ceil(rows / (1 + ratio))) - 1, len(squares) - 1)
    upper = squares.sum() / (rows * columns)
    tail = squares[most:]
    lower = max(squares[most] / (columns * limit), tail.mean() / columns)
    if lower >= upper:
        return 0
    variance = minimize_scalar(energy, bounds=(lower, upper), method="bounded").x
    return int(np.sum(squares > columns * variance * limit))
