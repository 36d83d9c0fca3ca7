"""Adapters by path or hub id; tests/orchestration/publishing/test_push.py uses a hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from vader_ray.errors import UserError
from vader_ray.hub import find_adapter


def test_a_local_path_is_the_adapter_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("owner/name").mkdir(parents=True)
    for local in ("owner/name", "runs/mine/best_adapter", "missing", "owner/name.pt"):
        assert find_adapter(local) == Path(local)
    assert find_adapter("~/adapter") == Path.home() / "adapter"


def test_an_id_without_hub_and_cache_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        UserError, match="there is no folder owner/name, and the hub's repository of this"
    ) as error:
        find_adapter("owner/name")
    assert "HF_HUB_OFFLINE is set" in str(error.value)
    assert "\n" not in str(error.value)
