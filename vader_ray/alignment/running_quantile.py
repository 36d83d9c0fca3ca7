"""A quantile of the latest values, such as the limit of a gradient's norm (RSM, arXiv 2604.17415)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


class RunningQuantile:
    """The quantile of the latest finite values; all its state is their list.

    The limit of a step is computed before the step's own values are added. If every worker adds the values of
    all workers in one order, the limit is the same on all of them and does not depend on their number.

    Args:
        quantile: 0 to 1; 0.8 is a value that one fifth of the values exceed.
        window: number of latest values that are kept.
    """

    def __init__(self, quantile: float, window: int = 256) -> None:
        self.quantile = quantile
        self.window = window
        self._values: list[float] = []

    def value(self) -> float:
        """Return the quantile of the kept values, interpolated linearly; infinity if there are none."""
        return float(np.quantile(self._values, self.quantile)) if self._values else math.inf

    def add(self, values: Sequence[float]) -> None:
        """Add values, the oldest first; those that are not finite are left out."""
        finite = [value for value in values if math.isfinite(value)]
        self._values = [*self._values, *finite][-self.window :]

    def state_dict(self) -> list[float]:
        """Return the kept values, the oldest first, for a checkpoint (`StepContext.algorithm_state`)."""
        return list(self._values)

    def load_state_dict(self, state: Sequence[float]) -> None:
        """Restore the values that `state_dict` returned."""
        self._values = list(state)
