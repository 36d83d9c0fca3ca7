"""Model families by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.recipe import tiny_config
from vader_ray import models
from vader_ray.config import ModelConfig
from vader_ray.errors import UserError
from vader_ray.training.resolve import resolve_names


def test_every_family_has_a_class_of_its_own_name() -> None:
    classes = [models.resolve(name) for name in models.names()]
    assert len({found.__name__ for found in classes}) == len(classes) == 24
    assert models.resolve("videocrafter2").__name__ == "VideoCrafter2Model"


def test_a_dotted_name_reaches_a_family_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "my_families.py").write_text(
        "from vader_ray.models.wan import WanModel\nclass MyModel(WanModel): ...\n"
    )
    (tmp_path / "lab" / "two_families.py").write_text("class OneModel: ...\nclass OtherModel: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert models.resolve("lab.my_families").__name__ == "MyModel"
    assert models.resolve("lab.my_families.WanModel") is models.resolve("wan")
    assert models.resolve("lab.two_families.OtherModel").__name__ == "OtherModel"
    for name, message in (
        (
            "wam",
            r"model.family: there is no 'wam'; did you mean 'wan'\? give one of animatediff, "
            r".*ends in Model.* my.module.ClassName",
        ),
        ("base", "there is no 'base'"),
        (
            "lab.two_families",
            r"whose name ends in Model and defines OneModel, OtherModel; .*two_families\.ClassName",
        ),
        ("lab.my_families.Nothing", "my_families defines no 'Nothing'; define it there"),
        ("nowhere.at.all", "there is no module 'nowhere.at.all' or 'nowhere.at'; .*PYTHONPATH"),
    ):
        with pytest.raises(ValueError, match=message):
            models.resolve(name)


def test_the_family_is_found_by_the_pipelines_class(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_pipeline_folder, model={"weights": str(tiny_pipeline_folder)})
    assert config.model.family == "auto"
    assert resolve_names(config).model.family == "modelscope"
    assert models.find_family(ModelConfig(weights="shapes:svd")) == "svd"
    assert models.find_family(ModelConfig(weights="a/b", motion_adapter="c/d")) == "animatediff"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(UserError, match="is a StableDiffusionPipeline, of which no model family is known"):
        models.find_family(ModelConfig(weights=str(tmp_path / "other")))
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(UserError, match=r"is one file, which does not tell its model; set model\.family"):
        models.find_family(ModelConfig(weights=str(tmp_path / "model.ckpt")))
