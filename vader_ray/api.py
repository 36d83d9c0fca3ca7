"""The Python API for recipes: load, train, evaluate, generate, sweep; and rewards and adapters by name.

Every function here is exported by the package itself: ``import vader_ray as vr; vr.train(...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vader_ray.config import ExperimentConfig, load_document, set_setting, validate
from vader_ray.paths import packaged_weights as packaged_weights

if TYPE_CHECKING:
    from vader_ray.orchestration.runs.summary import RunSummary
    from vader_ray.training.callbacks import Callback

RewardLike: TypeAlias = str | Callable[..., Any] | Mapping[str, Any]
"""A reward by name, a function of ``(frames, prompts)``, or the keys of a recipe's list ``rewards`` (``reward``,
which may be a function, ``weight``, ``frames``, the reward's own options …)."""
PromptsLike: TypeAlias = str | Path | Iterable[str]
"""A file of prompts (.txt, .csv, .jsonl, .parquet), or any iterable of texts, such as a column of a `datasets.Dataset`."""


def load_recipe(
    recipe: str | Path, overrides: Mapping[str, Any] | None = None, /, **settings: Any
) -> ExperimentConfig:
    """Load a recipe and change some of its settings.

    Args:
        recipe: the name of a packaged recipe (``vader-ray list recipes``) or the path of a YAML file.
        overrides: dotted path → value, such as ``{"sampling.truncation_depth": 2}``.
        settings: top-level settings, such as ``num_steps=16``.

    Raises:
        UserError: one line per problem, each with the setting's path.
    """
