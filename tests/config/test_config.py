"""Recipes: parsing, overrides, and a clear refusal of what cannot work."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml
from pyarrow import parquet

from tests.helpers.recipe import MINIMAL
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.config import (
    ExperimentConfig,
    flatten,
    list_settings,
    load,
    model_names,
    override,
    recipe_names,
    split_image,
    validate,
)
from vader_ray.config.yaml_text import parse_yaml
from vader_ray.errors import UserError
from vader_ray.metrics import measured_metrics
from vader_ray.rewards import brightness
from vader_ray.uris import full_uri


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_parses_and_crosses_a_process_border_unchanged(recipe: str) -> None:
    config = load(recipe)
    assert config.name == recipe
    if config.model.weights.startswith("shapes:"):
        assert config.expected_metrics, "a recipe that anyone can run states the number it reaches"
    expected = {name.replace("test/", "eval/", 1) for name in config.expected_metrics}
    assert expected <= {*config.reward_metrics(), *measured_metrics(config)}
    assert validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_measures_rewards_that_it_does_not_train_and_is_guarded_by_one(recipe: str) -> None:
    config = load(recipe)
    assert config.eval_rewards
    assert not {reward.reward for reward in config.rewards} & {
        reward.reward for reward in config.eval_rewards
    }
    untrained = {f"eval/reward/{reward.name}" for reward in config.eval_rewards}
    assert untrained & set(config.guard_metrics())
    selects_by_itself = {"shapes_detection", "shapes_vjepa", "shapes_svd_vjepa"}
    """What these train, single frames cannot show: held-out rewards of frames guard, and do not select."""
    assert (config.selection_metric() in untrained) != (recipe in selects_by_itself)


def test_recipes_never_say_where_they_run() -> None:
    """Recomputation of blocks is a property of large models, and the only setting of the runtime."""
    for recipe in recipe_names():
        changed = load(recipe).runtime.model_copy(update={"activation_checkpointing": "none"})
        assert changed == load("shapes_hps").runtime
        assert load(recipe).tracking == load("shapes_hps").tracking


def test_overrides_reach_every_depth() -> None:
    changes = [
        "sampling.truncation_depth=2",
        "optimizer.learning_rate=1e-4",
        "rewards.0.weight=3",
        "optimizer.betas=[0.5, 0.6]",
    ]
    config = load("shapes_hps", changes)
    assert (config.sampling.truncation_depth, config.optimizer.learning_rate, config.rewards[0].weight) == (
        2,
        1e-4,
        3.0,
    )
    assert config.optimizer.betas == (0.5, 0.6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "sampling.truncation_depth=99",
            "truncation_depth=99 is more than num_inference_steps=20; choose 1 to 20",
        ),
        ("sampling.truncation_depth=0", "sampling.truncation_depth: Input should be greater than 0"),
        (
            "sampling.steps=3",
            "sampling.steps: there is no such setting; here are eta, guidance_interval",
        ),
        ("num_steps=many", "num_steps: Input should be a valid integer"),
        ("sampling.truncation=lst", "truncation=lst is unknown; did you mean 'last'?"),
        (
            "sampling.truncation=[{step: 20}]",
            "truncation lists the steps [20]; list ascending ones from 0",
        ),
        ("prompts.train=/nowhere.txt", "prompts.train: cannot read the prompt file /nowhere.txt"),
        ("prompts.train=/dev/null", "prompts.train: cannot read the prompt file /dev/null"),
        ("prompts.train=shapes:validation", "24 prompts are in both train and validation"),
        ("prompts.test=shapes:validation", "24 prompts are in both validation and test"),
        ("prompts.test=shapes:train", "96 prompts are in both train and test"),
        ("model.weights=/nowhere", "model.weights: /nowhere does not exist; give an existing path, a hub id"),
        ("model.weights=shapes:nothing", "names no packaged checkpoint; there are a"),
        ("runtime.num_workers=3", "videos_per_step=8 cannot be shared evenly by runtime.num_workers=3"),
        ("eval_rewards.0.reward=hps", "two rewards are called 'hps'; give one of them another `label`"),
        ("rewards.0.frames=some", r"rewards.0.frames: String should match pattern"),
        (
            "evaluation.select=eval/reward/nothing",
            "is never measured; choose one of eval/objective, eval/reward/hps",
        ),
        ("rewards.5.weight=1", "'5' is no item of a list of 1"),
        ("num_steps.more=1", "'num_steps' is a value, not a section"),
        ("num_steps", "'num_steps' is not an override; write a.b=value"),
        ("num_step=3", "num_step: there is no such setting; did you mean 'num_steps'? here are adapter, "),
        ("sampling.guidance=3", "did you mean 'guidance_scale'? here are eta"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate: Input should be a finite number, not nan"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate: Input should be a finite number, not inf"),
        ("rewards.0.weight=.nan", "rewards.0.weight: Input should be a finite number, not nan"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas.1: Input should be less than 1, not 1.0"),
        ("optimizer.betas=[-0.1, 0.5]", "optimizer.betas.0: Input should be greater than or equal to 0"),
        (
            "optimizer.schedule_steps=99",
            "optimizer: schedule_steps=99 has no effect on schedule=constant; set schedule=cosine or",
        ),
        (
            "optimizer={schedule: cosine, schedule_steps: 1}",
            "optimizer.schedule_steps=1 is less than num_steps=32, and the learning rate is 0 after it",
        ),
        (
            "optimizer={schedule: linear, warmup_steps: 32}",
            "optimizer.warmup_steps=32 leaves no step for the decay, which ends at step 32",
        ),
        ("optimizer.ema_decay=1.0", "optimizer.ema_decay: Input should be less than 1, not 1.0"),
        (
            "rewards=[{reward: brightness, hinge: 0.7, target: 0.8}]",
            "rewards.0: hinge=0.7 cannot be combined with target=0.8",
        ),
        (
            "rewards=[{reward: brightness, hinge: 0.7, weight: -1}]",
            "rewards.0: hinge=0.7 bounds a score that is raised, and weight=-1 lowers it",
        ),
        (
            "eval_rewards.0.hinge=0.0",
            "eval_rewards.0.hinge=0 has no effect on a reward that is only measured",
        ),
        ("eval_rewards.0.dropout=0.5", "eval_rewards.0.dropout=0.5 has no effect on a reward that is only"),
        ("rewards.0.dropout=0.5", "rewards.0.dropout=0.5 leaves the reward out of some steps, and it is the"),
        ("rewards.0.dropout=1", "rewards.0.dropout: Input should be less than 1, not 1"),
        (
            "generation.adapter_strength=-1",
            "generation.adapter_strength.0.1: Input should be greater than or",
        ),
        (
            "generation.adapter_strength=[[0.5, 0], [0.2, 1]]",
            "generation: adapter_strength has points at [0.5, 0.2]; order them by their first number",
        ),
        ("seed=9223372036854775808", "seed: Input should be less than 9223372036854775808"),
        ("name=[[[", "name: '[[[' is not a YAML value"),
        (
            "description={a: 1, a: 2}",
            "description: '{a: 1, a: 2}' is not a YAML value ('a' is given in",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_its_path_and_remedy(change: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        load("shapes_hps", [change])
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_recipe_file_resolves_paths_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompts.txt").write_text("first\n\n second \n")
    (tmp_path / "weights").mkdir()
    document = yaml.safe_load(MINIMAL) | {"prompts": {"train": "prompts.txt", "validation": ["b"]}}
    document["model"]["weights"] = "./weights"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.chdir("/")
    config = load(str(tmp_path / "mine.yaml"))
    assert config.prompts.train == ("first", "second")
    assert config.model.weights == str(tmp_path / "weights")


LAUGHS = "a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 8))
"""Eight lines whose aliases stand for more than ten million values."""


def test_keys_that_a_merge_brings_may_be_given_again() -> None:
    assert parse_yaml("base: &base {a: 1, b: 2}\nmine: {<<: *base, b: 3}")["mine"] == {"a": 1, "b": 3}


def test_a_file_too_large_for_a_recipe_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(UserError, match=r"huge.yaml cannot be read .* 17179869184 bytes; at most 16777216"):
        load(str(tmp_path / "huge.yaml"))


def test_a_recipe_of_nearly_this_name_is_suggested() -> None:
    with pytest.raises(UserError, match=r"there is no recipe 'shape_hps'; did you mean 'shapes_hps'\? give"):
        load("shape_hps")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "must hold a mapping"),
        ("a: [", "cannot be read as YAML"),
        ("a: 1", "name: is required"),
        ("", "must hold a mapping of settings, not NoneType"),
        ("seed: 1\nname: x\nseed: 2", "'seed' is given in line 1 and again in line 3"),
        ("model: {family: a, family: b}", "'family' is given in line 1 and again in line 1"),
        ("a: " + "[" * 5000, "cannot be read as YAML: .*exceeded maximum nesting depth in line 1"),
        ("a: &a [*a]", "an alias contains itself"),
        (LAUGHS, "its aliases expand to 23456798 values; at most 200000 are read"),
        ("a: 2020-99-99", "cannot be read as YAML: month must be in 1..12"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load(str(tmp_path / "bad.yaml"))


def test_identity_ignores_where_a_run_happens() -> None:
    assert load("shapes_hps", ["runtime.num_workers=2"]).fingerprint() == load("shapes_hps").fingerprint()
    generation = load("shapes_hps", ["generation.adapter_strength=[[0, 0], [0.5, 1]]"])
    assert generation.fingerprint() == load("shapes_hps").fingerprint(), "it has no effect on training"
    assert load("shapes_hps", ["seed=1"]).fingerprint() != load("shapes_hps").fingerprint()


def test_identity_has_the_settings_that_round() -> None:
    plain = load("shapes_hps")
    assert load("shapes_hps", ["runtime.gradient_precision=float32"]).fingerprint() == plain.fingerprint()
    for change in ("gradient_precision=bfloat16", "matmul_precision=highest"):
        assert load("shapes_hps", [f"runtime.{change}"]).fingerprint() != plain.fingerprint()


def test_identity_has_the_end_of_a_decay() -> None:
    def identity(*overrides: str) -> object:
        return load("shapes_hps", overrides).fingerprint()

    assert identity("num_steps=8") == identity("num_steps=16")
    cosine = "optimizer.schedule=cosine"
    assert identity(cosine, "num_steps=8") != identity(cosine, "num_steps=16")
    assert identity(cosine, "num_steps=8", "optimizer.schedule_steps=16") == identity(cosine, "num_steps=16")


def test_flatten_gives_the_addresses_of_overrides() -> None:
    flat = flatten({"a": {"b": 1}, "c": [{"d": 2}], "e": [1, 2]})
    assert flat == {"a.b": 1, "c.0.d": 2, "e": [1, 2]}


def test_the_configuration_imports_no_framework() -> None:
    code = (
        "import sys, vader_ray.config; print(*({'torch', 'ray', 'mlflow', 'diffusers'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == ""
    )


def test_the_authors_mix_is_their_formula() -> None:
    """Their loss is (1.5 · 0.1 · |a − 10| + |1 − h|) / 2; the objective is its negative."""
    terms = {
        spec.name: RewardTerm(spec.name, brightness.BrightnessReward(), spec.weight, spec.target)
        for spec in load("shapes_hps_aesthetic").rewards
    }
    scores = {"hps": torch.tensor([0.24, 0.33, 1.1]), "aesthetic": torch.tensor([4.6, 7.3, 10.5])}
    objective = sum(term.value(scores[name]) for name, term in terms.items())
    loss = (1.5 * 0.1 * (scores["aesthetic"] - 10).abs() + (1 - scores["hps"]).abs()) / 2
    torch.testing.assert_close(objective, -loss)


def _with_prompts(train: object, folder: Path) -> ExperimentConfig:
    document = yaml.safe_load(MINIMAL) | {"prompts": {"train": train, "validation": train}}
    document["prompts"]["validation"] = [f"{folder / 'dog.png'} | another dog"]
    return validate(document, folder=folder)


def test_prompts_with_images(tmp_path: Path) -> None:
    for name in ("dog.png", "white_cat.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "prompts.txt").write_text("dog.png | a dog runs\nwhite_cat.jpg|a cat | jumps\n")
    dog, cat = tmp_path / "dog.png", tmp_path / "white_cat.jpg"
    written = _with_prompts("prompts.txt", tmp_path).prompts.train
    assert [split_image(prompt) for prompt in written] == [(dog, "a dog runs"), (cat, "a cat | jumps")]
    assert _with_prompts(["dog.png | a dog runs"], tmp_path).prompts.train == (f"{dog} | a dog runs",)
    assert _with_prompts(".", tmp_path).prompts.train == (f"{dog} | dog", f"{cat} | white cat")
    assert split_image("black | white") == (None, "black | white")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            ["no.png | a dog"],
            r"prompts.train: the image .*no.png does not exist; write `path/to/image.png \| text`",
        ),
        (["dog.png | a dog", "a cat"], "prompts.train: some prompts have an image and some have none"),
        ("empty", "prompts.train: .*empty holds no image"),
    ],
)
def test_image_prompts_are_checked(tmp_path: Path, train: object, message: str) -> None:
    (tmp_path / "dog.png").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        _with_prompts(train, tmp_path)


PROMPT_FILES: dict[str, Any] = {
    "prompts.txt": b"a cat\n\n  a dog, running \n",
    "with_bom.txt": b"\xef\xbb\xbfa cat\r\na dog, running\r\n",
    "prompts.csv": b'id,prompt\n1,a cat\n2," a dog, running "\n',
    "of_excel.CSV": b'\xef\xbb\xbfprompt;not a delimiter,prompt\r\n1,a cat\r\n\r\n2,"a dog, running"\r\n',
    "prompts.jsonl": b'{"id": 1, "prompt": "a cat"}\n\n{"prompt": "a dog, running"}\n',
    "prompts.parquet": {"id": [1, 2], "prompt": ["a cat", " a dog, running"]},
}


def _write(path: Path, content: Any) -> Path:
    if isinstance(content, dict):
        parquet.write_table(pa.table(content), path)
    else:
        path.write_bytes(content)
    return path


def _read(path: Path, *overrides: str) -> tuple[str, ...]:
    return load("shapes_hps", [f"prompts.train={path}", *overrides]).prompts.train


@pytest.mark.parametrize("name", PROMPT_FILES)
def test_prompt_files_are_read_as_what_they_are(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, PROMPT_FILES[name])
    assert _read(path) == ("a cat", "a dog, running")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.csv", b"prompt,caption\nno,a cat\nno,a dog\n"),
        ("captions.jsonl", b'{"caption": "a cat", "prompt": 3}\n{"caption": "a dog"}\n'),
        ("captions.parquet", {"prompt": [1, 2], "caption": ["a cat", "a dog"]}),
    ],
)
def test_the_column_of_prompts_can_be_named(tmp_path: Path, name: str, content: Any) -> None:
    path = _write(tmp_path / name, content)
    assert _read(path, "prompts.column=caption") == ("a cat", "a dog")
    inline = load("shapes_hps", ["prompts.train=[a cat, a dog]"])
    assert (
        load("shapes_hps", [f"prompts.train={path}", "prompts.column=caption"]).fingerprint()
        == inline.fingerprint()
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cat.txt", b"a cat\n\xff\xfe", "is not text in UTF-8; save it with this encoding"),
        ("cat.txt", b"a cat\0\n", "holds NUL characters, which no text has"),
        (
            "cat.txt",
            b" \n\n",
            "holds no prompt; give a .txt file with one prompt per line or a .csv, .jsonl, .parquet file",
        ),
        (
            "cat.png",
            b"\x89PNG",
            "is not known to be a file of prompts by its suffix '.png'; give a .txt file",
        ),
        ("cat", b"a cat", "is not known to be a file of prompts by its suffix ''; give a .txt file"),
        (
            "cat.csv",
            b"a cat\na dog\n",
            "must have exactly one column 'prompt' and has 'a cat'; set prompts.column",
        ),
        ("cat.csv", b"", "must have exactly one column 'prompt' and has none"),
        (
            "cat.csv",
            b"prompt,prompt\na,b\n",
            "must have exactly one column 'prompt' and has 'prompt', 'prompt'",
        ),
        ("cat.csv", b"prompt\n", "holds no prompt"),
        (
            "cat.csv",
            b"prompt\na cat, running\n",
            ", line 2 has more cells than the first line has columns; put double quotes",
        ),
        (
            "cat.csv",
            b"prompt,id\na cat,1\n ,2\n",
            ", line 3: the column 'prompt' is empty; write a prompt there",
        ),
        ("cat.csv", b'prompt\n"a cat" runs"\n', " is not CSV after its line 1 ("),
        ("cat.jsonl", b"a cat\n", ", line 1 is not a JSON object; write one {"),
        ("cat.jsonl", b'["a cat"]\n', ", line 1 is not a JSON object; write one {"),
        (
            "cat.jsonl",
            b'{"prompt": "a"}\n{"text": "a"}\n',
            ", line 2 must have exactly one column 'prompt' and has 'text'",
        ),
        (
            "cat.jsonl",
            b'{"prompt": ["a cat"]}\n',
            ", line 1: the column 'prompt' holds a value of type list; give text",
        ),
        ("cat.jsonl", b'{"prompt": null}\n', ", line 1: the column 'prompt' is empty"),
        (
            "cat.jsonl",
            b'{"prompt": "a\\u0000cat"}\n',
            ", line 1: a prompt has a NUL character or half of a UTF-16 pair",
        ),
        (
            "cat.jsonl",
            b'{"prompt": "a\\ud800cat"}\n',
            ", line 1: a prompt has a NUL character or half of a UTF-16 pair",
        ),
        ("cat.parquet", b"a cat\n", "is not a sound Parquet file (ArrowInvalid); write it again"),
        (
            "cat.parquet",
            {"text": ["a cat"]},
            "must have exactly one column 'prompt' and has 'text'; set prompts.column",
        ),
        ("cat.parquet", {"prompt": ["a cat", None]}, ", row 2: the column 'prompt' is empty"),
        (
            "cat.parquet",
            {"prompt": [1.5]},
            ", row 1: the column 'prompt' holds a value of type float; give text",
        ),
        (
            "cat.parquet",
            {"prompt": [b"a cat"]},
            ", row 1: the column 'prompt' holds a value of type bytes; give text",
        ),
    ],
)
def test_what_is_not_prompts_is_refused_in_one_sentence(
    tmp_path: Path, name: str, content: Any, message: str
) -> None:
    path = _write(tmp_path / name, content)
    with pytest.raises(UserError) as refusal:
        _read(path)
    assert str(refusal.value).startswith(f"prompts.train: {path}")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_table_of_prompts_names_images_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "dog.png").touch()
    (tmp_path / "prompts.csv").write_text('prompt\n"dog.png | a dog, running"\n')
    assert _with_prompts("prompts.csv", tmp_path).prompts.train == (
        f"{tmp_path / 'dog.png'} | a dog, running",
    )


def test_a_password_in_the_tracking_uri_stays_in_memory() -> None:
    config = load("shapes_hps", ["tracking.uri=http://me:canary@host"])
    assert full_uri(config.tracking.uri or "") == "http://me:canary@host"
    assert "canary" not in f"{config} {config!r} {config.model_dump()} {config.model_dump_json()}"
    assert config.model_dump(mode="json")["tracking"]["uri"] == "http://***@host"
    for kept in (override(config, ["seed=3"]), pickle.loads(pickle.dumps(config))):
        assert full_uri(kept.tracking.uri or "") == "http://me:canary@host"
    with pytest.raises(UserError, match=r"tracking: .*http://\*\*\*@host"):
        load("shapes_hps", ["tracking=http://me:canary@host"])


def test_a_recipe_extends_another(tmp_path: Path) -> None:
    """Sections are merged, lists and values are replaced, and each value is listed with its file."""
    (tmp_path / "base.yaml").write_text(MINIMAL)
    (tmp_path / "mine.yaml").write_text(
        "extends: base.yaml\nname: mine\nsampling: {eta: 0.5}\n"
        "rewards: [{reward: hps, weights: 'shapes:hps'}]\n"
    )
    mine = str(tmp_path / "mine.yaml")
    base, config = load(str(tmp_path / "base.yaml")), load(mine)
    assert config.sampling == base.sampling.model_copy(update={"eta": 0.5})
    assert [reward.name for reward in config.rewards] == ["hps"]
    origins = {each.path: each.origin for each in list_settings(mine, ["videos_per_step=3", "guard.bound=1"])}
    assert origins["name"] == origins["sampling.eta"] == origins["rewards.0.weights"] == mine
    assert origins["num_steps"] == origins["sampling.height"] == str(tmp_path / "base.yaml")
    assert origins["videos_per_step"] == origins["guard.bound"] == "override"
    assert origins["optimizer.betas"] == origins["rewards.0.frames"] == "default"


def test_a_recipe_of_ones_own_extends_a_packaged_model(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: models/wan_1_3b\nname: mine\nrewards: [{reward: brightness}]\nsampling: {num_frames: 33}\n"
    )
    settings = {each.path: each for each in list_settings(str(tmp_path / "mine.yaml"))}
    assert settings["prompts.train"].value == "packaged:animal_actions"
    assert settings["prompts.train"].origin == "common/published.yaml"
    assert settings["model.weights"].origin == "models/wan_1_3b.yaml"
    config = load(str(tmp_path / "mine.yaml"))
    assert (config.sampling.num_frames, config.sampling.height) == (33, 480)
    assert len(config.prompts.train) == 100


@pytest.mark.parametrize("model", model_names())
def test_every_packaged_model_lacks_only_a_name_and_rewards(model: str) -> None:
    with pytest.raises(UserError) as error:
        load(model)
    assert str(error.value).splitlines() == ["name: is required", "rewards: is required"]


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("mine.yaml", "a file cannot extend itself"),
        ("models/wan", "there is no recipe 'models/wan'; .*models/wan_1_3b"),
        ("[shapes_hps]", "extends in .*mine.yaml: give the name of a recipe or the path of a YAML file"),
    ],
)
def test_what_cannot_be_extended(tmp_path: Path, base: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: {base}\nname: mine\n")
    with pytest.raises(UserError, match=message):
        load(str(tmp_path / "mine.yaml"))


def test_packaged_prompts_are_many_and_apart() -> None:
    prompts = load("wan_1_3b_hps").prompts
    assert len(prompts.train) >= 100
    assert len(prompts.validation) >= 40
    assert prompts.test is not None
    assert len(prompts.test) >= 40
    with pytest.raises(UserError, match=r"prompts.train: .packaged:x. names no packaged list of prompts"):
        load("wan_1_3b_hps", ["prompts.train=packaged:x"])
