"""What a sweep's trial saves when its process has loaded the same model, conditioning and rewards before.

python benchmarks/loading.py shapes_hps shapes_wan
"""

from __future__ import annotations

import time
from statistics import median
from typing import Annotated

import torch
import typer

from vader_ray.config import ExperimentConfig, load
from vader_ray.training.experiment import build
from vader_ray.training.model_cache import ModelCache


def seconds(config: ExperimentConfig, cache: ModelCache | None, repeats: int) -> float:
    """Of building what a run needs, the median."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    build(config, device, cache=cache)  # the first one does not count
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        build(config, device, cache=cache)
        found.append(time.perf_counter() - started)
    return median(found)


def main(
    recipes: Annotated[list[str], typer.Argument(help="Packaged recipes or paths of YAML files.")],
    repeats: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Load each recipe's experiment with and without a cache."""
    for recipe in recipes:
        config = load(recipe)
        print(
            f"{recipe}: {seconds(config, None, repeats):.2f} s, "
            f"from the cache {seconds(config, ModelCache(), repeats):.2f} s"
        )


if __name__ == "__main__":
    typer.run(main)
