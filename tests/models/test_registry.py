"""Model families by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from vader_ray import models


def test_every_family_has_a_class_of_its_own_name() -> None:
    classes = [models.resolve(name) for name in models.names()]
    assert len(classes) == len({found.__name__ for found in classes}) == 9
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
