"""``python -m vader_ray`` is ``vader-ray``."""

from __future__ import annotations

from vader_ray.cli import app

app(prog_name="vader-ray")
