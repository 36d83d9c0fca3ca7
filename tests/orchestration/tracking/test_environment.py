"""The command of a process, as the report shows it."""

from __future__ import annotations

import pytest

from vader_ray.orchestration.tracking.environment import command_line
from vader_ray.paths import PACKAGE


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["/venv/bin/vader-ray", "train", "shapes_hps", "--workers", "2", "rewards=[{reward: hps}]"],
            "vader-ray train shapes_hps --workers 2 'rewards=[{reward: hps}]'",
        ),
        (["/x/vader_ray/__main__.py", "train", "shapes_hps"], "vader-ray train shapes_hps"),
        (["sweeps/hps_k_sweep.py", "--num-trials", "2"], "python sweeps/hps_k_sweep.py --num-trials 2"),
        (
            [str(PACKAGE / "sweeps" / "hps_k_sweep.py"), "num_steps=2"],
            "vader-ray sweep hps_k_sweep num_steps=2",
        ),
        (["/x/ipykernel_launcher.py", "-f", "kernel.json"], ""),
        ([""], ""),
        (
            ["vader-ray", "train", "x", "tracking.uri=https://me:canary@host/"],
            "vader-ray train x 'tracking.uri=https://***@host/'",
        ),
        (
            ["vader-ray", "train", "x", "rewards.0.placement.runtime_env.env_vars.KEY=canary"],
            "vader-ray train x 'rewards.0.placement.runtime_env.env_vars.KEY=***'",
        ),
    ],
)
def test_the_command_is_that_of_a_shell_without_secrets(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.setattr("sys.argv", arguments)
    assert command_line() == expected
