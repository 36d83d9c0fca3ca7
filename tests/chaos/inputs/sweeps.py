"""Overrides of the sweeps of this repository that are refused, because no trial would use them."""

from __future__ import annotations

REFUSED = [
    ("hps_k_sweep", "sampling.truncation_depth=3", "sets sampling.truncation_depth itself"),
    ("hps_k_sweep", "sampling.truncation=random", "sets sampling.truncation itself"),
    (
        "hps_k_sweep",
        "runtime.num_workers=2",
        "runtime.num_workers: the trials of a sweep get their workers by",
    ),
    ("hps_k_sweep", "num_step=3", "num_step: there is no such setting; did you mean 'num_steps'?"),
    ("learning_rate_sweep", "optimizer.learning_rate=1", "sets optimizer.learning_rate itself, so"),
    ("k_lr_reward_sweep", "optimizer.learning_rate=1", "sets optimizer.learning_rate itself, so"),
]

ACCEPTED = [
    ("hps_k_sweep", "num_steps=2"),
    ("hps_k_sweep", "sampling.eta=0.5"),
    ("reward_mix_sweep", "rewards.0.weight=2"),
    ("k_lr_reward_sweep", "rewards.1.weight=2"),
    ("learning_rate_sweep", "optimizer.betas=[0.8, 0.9]"),
]
"""Overrides that every trial uses: of other fields, or of a field that each trial scales."""
