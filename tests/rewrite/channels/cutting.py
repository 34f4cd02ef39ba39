"""Choosing channels, and models in which those that were chosen are zero."""

import numpy as np


def halves(coupling, seed=0):
    """Returns half of the units of each group."""
    generator = np.random.default_rng(seed)
    return np.concatenate(
        [generator.permutation(g.units)[: len(g.units) // 2] for g in coupling.groups]
    )


def with_zeros(model, coupling, removed):
    """Sets every weight of the units to zero."""
    gone = np.zeros(coupling.units, bool)
    gone[removed] = True
    for use in coupling.uses.values():
        value = np.array(use.variable)
        for axis, numbers in use.axes.items():
            np.moveaxis(value, axis, 0)[gone[coupling.unit_of(numbers)]] = 0
        use.variable.assign(value)


def randomized(model):
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if "float" in weight.dtype:
            low = 0.5 if "variance" in weight.path else -0.7
            weight.assign(generator.uniform(low, 0.7, weight.shape))
