"""Which trial comes next: the waiting ones, then what Optuna proposes from the results so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from vader_ray.orchestration.sweeps.definition import Values, rounded, trial_name

SELECTED = "selected"
"""What Tune hears of an evaluation: the metric by which the recipe chooses."""

_MAX_REPEATS = 20
"""OptunaProposer of known trials in a row after which the space counts as exhausted."""


class OptunaProposer:
    """Values of new trials by Optuna's tree-structured Parzen estimator (TPE), all different.

    Args:
        space: as `SweepDefinition.space`, domains only.
        num_trials: how many there shall be, those that were `seen` included.
        seed: of the draws; the same results in the same order give the same proposals.
    """

    def __init__(self, space: Mapping[str, Any], *, num_trials: int, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._domains = OptunaSearch.convert_search_space(dict(space))
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=max(4, num_trials // 4), constant_liar=True
        )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._num_trials = num_trials
        self._open: dict[str, optuna.trial.Trial] = {}
        self._names: set[str] = set()

    def seen(self, values: Values, score: float | None) -> None:
        """Learn from a trial of an earlier session; without a score it only counts."""
        self._names.add(trial_name(values))
        if score is not None:
            self._study.add_trial(
                optuna.trial.create_trial(params=values, distributions=self._domains, value=score)
            )

    def next(self) -> Values | None:
        """The values of one more trial; None when there are enough, or nothing new is left."""
        for _ in range(_MAX_REPEATS if len(self._names) < self._num_trials else 0):
            proposed = self._study.ask(self._domains)
            values = {name: rounded(value) for name, value in proposed.params.items()}
            if (name := trial_name(values)) not in self._names:
                self._names.add(name)
                self._open[name] = proposed
                return values
            self._study.tell(proposed, state=optuna.trial.TrialState.FAIL)
        return None

    def tell(self, name: str, score: float | None) -> None:
        """How a proposed trial ended; without a score it failed."""
        if (proposed := self._open.pop(name, None)) is not None:
            failed = optuna.trial.TrialState.FAIL if score is None else None
            self._study.tell(proposed, score, state=failed)


class Named(Protocol):
    """A trial that can be handed to Tune."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def place(self) -> Mapping[str, str | None]:
        """Where it is kept."""


class QueuedSearcher(Searcher):  # type: ignore[misc]
    """Hands trials to Ray Tune, which asks whenever there is room.

    Args:
        take: the next trial, None when there is none.
        tell: hears the name of each trial that ended and its last score, None when it has none.
    """

    def __init__(self, take: Callable[[], Named | None], tell: Callable[[str, float | None], None]) -> None:
        super().__init__(metric=SELECTED, mode="max")
        self._take, self._tell = take, tell
        self._names: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        """What `run_trial` is called with."""
        if (trial := self._take()) is None:
            return Searcher.FINISHED
        self._names[trial_id] = trial.name
        return {"trial": trial.name, **trial.place}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass on how it ended."""
        self._tell(self._names[trial_id], (result or {}).get(SELECTED))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the folder of the sweep is its memory."""
