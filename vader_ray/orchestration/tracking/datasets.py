"""The prompts of a run as MLflow data sets: their number and a hash by which equal prompts are noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from vader_ray.config import ExperimentConfig
from vader_ray.orchestration.tracking.mlflow_client import Dataset, DatasetInput, InputTag

_CONTEXT = "mlflow.data.context"
"""Tag with the use of a data set, which MLflow shows beside its name."""


def prompt_datasets(config: ExperimentConfig, run_id: str) -> list[DatasetInput]:
    """Return the prompts of training, validation and test; their texts are in the run's ``recipe.yaml``."""
    return [
        _dataset(f"{config.name} {kind}", prompts, context, run_id)
        for kind, context, prompts in (
            ("prompts", "training", config.prompts.train),
            ("validation prompts", "validation", config.prompts.validation),
            ("test prompts", "test", config.prompts.test or ()),
        )
        if prompts
    ]


def digest(text: str) -> str:
    """Return the first digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _dataset(name: str, prompts: Sequence[str], context: str, run_id: str) -> DatasetInput:
    source = {"tags": {"mlflow.source.name": f"runs:/{run_id}/recipe.yaml"}}
    column = {"type": "string", "name": "prompt", "required": True}
    dataset = Dataset(
        name=name,
        digest=digest("\n".join(prompts)),
        source_type="code",
        source=json.dumps(source),
        schema=json.dumps({"mlflow_colspec": [column]}),
        profile=json.dumps({"num_rows": len(prompts)}),
    )
    return DatasetInput(dataset, [InputTag(_CONTEXT, context)])
