"""The search of a sweep: waiting trials first, then Optuna's proposals from the results so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from vader_ray.orchestration.sweeps.definition import Values, rounded, trial_name

QUERIES = "reward_queries"
"""Name under which the reward queries so far are reported to Tune."""
SELECTED = "selected"
"""Name under which the recipe's selection metric is reported to Tune."""

_MAX_REPEATS = 20
"""Proposals of known trials in a row after which the space counts as exhausted."""


class OptunaProposer:
    """Values of new trials by Optuna's tree-structured Parzen estimator (TPE), all different.

    Args:
        space: as `SweepDefinition.space`, domains only.
        num_trials: number of trials in all, those of `add_known` included.
        seed: seed of the draws; the same results in the same order give the same proposals.
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

    def add_known(self, values: Values, score: float | None) -> None:
        """Use the result of an earlier session's trial; without a score it is only counted."""
        self._names.add(trial_name(values))
        if score is not None:
            self._study.add_trial(
                optuna.trial.create_trial(params=values, distributions=self._domains, value=score)
            )

    def next(self) -> Values | None:
        """Return the values of one more trial; None if there are enough, or the space is exhausted."""
        for _ in range(_MAX_REPEATS if len(self._names) < self._num_trials else 0):
            proposed = self._study.ask(self._domains)
            values = {name: rounded(value) for name, value in proposed.params.items()}
            if (name := trial_name(values)) not in self._names:
                self._names.add(name)
                self._open[name] = proposed
                return values
            self._study.tell(proposed, state=optuna.trial.TrialState.FAIL)
        return None

    def complete(self, name: str, score: float | None) -> None:
        """Use the result of a proposed trial; without a score it has failed."""
        if (proposed := self._open.pop(name, None)) is not None:
            failed = optuna.trial.TrialState.FAIL if score is None else None
            self._study.tell(proposed, score, state=failed)


class Named(Protocol):
    """A trial that can be handed to Tune."""

    @property
    def name(self) -> str:
        """Name of the trial."""

    @property
    def location(self) -> Mapping[str, str | None]:
        """Its folder, as arguments of `run_trial`."""


class QueuedSearcher(Searcher):  # type: ignore[misc]
    """Searcher that gives Ray Tune one trial of a queue after another, as soon as there is room.

    Args:
        next_trial: returns the next trial, None when there is none.
        on_complete: receives the name of each trial that ended and its last score, None when it has none.
    """

    def __init__(
        self, next_trial: Callable[[], Named | None], on_complete: Callable[[str, float | None], None]
    ) -> None:
        super().__init__(metric=SELECTED, mode="max")
        self._next_trial, self._on_complete = next_trial, on_complete
        self._names: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        """Return the arguments of `run_trial` for the next trial."""
        if (trial := self._next_trial()) is None:
            return Searcher.FINISHED
        self._names[trial_id] = trial.name
        return {"trial": trial.name, **trial.location}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass on the trial's last score."""
        self._on_complete(self._names[trial_id], (result or {}).get(SELECTED))

    def __getstate__(self) -> dict[str, Any]:
        """Return no trials: Tune pickles its searcher to a file, and a trial's URI may have a password."""
        functions = ("_next_trial", "_on_complete")
        return {name: value for name, value in vars(self).items() if name not in functions}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a sweep is continued from its folder."""
