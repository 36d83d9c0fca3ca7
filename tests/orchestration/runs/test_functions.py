"""Functions as rewards on their way to another process."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor

from tests.helpers.waiting import wait_until
from vader_ray import rewards
from vader_ray.errors import UserError
from vader_ray.orchestration.runs.functions import pack_functions

LOCK = threading.Lock()


def _scale(frames: Tensor) -> Tensor:
    return 3 * frames


def scaled_mean(frames: Tensor, prompts: Sequence[str]) -> Tensor:
    assert callable(wait_until)  # of another module of this package
    return _scale(frames).mean(dim=(1, 2, 3, 4))


def locked(frames: Tensor, prompts: Sequence[str]) -> Tensor:
    with LOCK:
        return scaled_mean(frames, prompts)


def test_a_function_arrives_where_its_module_cannot_be_imported(tmp_path: Path) -> None:
    name = rewards.register_function(scaled_mean)
    (tmp_path / "packed").write_bytes(pack_functions([name, "brightness"]))
    program = f"""
from pathlib import Path
import sys, torch
sys.modules["tests"] = None  # an import of it fails
from vader_ray import rewards
from vader_ray.orchestration.runs.functions import unpack_functions
unpack_functions(Path("packed").read_bytes())
print(rewards.registered_functions([{name!r}])[{name!r}](torch.ones(1, 1, 3, 2, 2), [""]).item())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "3.0\n", done.stderr


def test_what_cannot_be_sent_is_named() -> None:
    with pytest.raises(UserError, match=r"rewards: locked cannot be sent to the workers \(.*lock.*\)"):
        pack_functions([rewards.register_function(locked)])
