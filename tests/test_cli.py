"""The command line: what bad input answers, and the commands that need no Ray."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.helpers.network import failing_server
from tests.helpers.recipe import write_tiny
from tests.helpers.tiny_clips import save_clip
from vader_ray.cli import app
from vader_ray.cli.clusters import FILES, files_of
from vader_ray.cli.sweeps import sweep_names
from vader_ray.config import load
from vader_ray.errors import UserError
from vader_ray.orchestration.clusters.cluster_files import check_cluster_file
from vader_ray.paths import PACKAGE
from vader_ray.plugins import ALGORITHMS, FAMILIES, METRICS, REWARDS, Registry


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def _refused(*arguments: str) -> str:
    """The sentence that ends stderr of a command with status 2, which leaves no run behind."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert re.findall("^vader-ray: .*", result.stderr, re.MULTILINE) == [result.stderr.splitlines()[-1]]
    assert not list(Path("runs").glob("*/checkpoints"))
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "sampling.truncation_depth=99",
            "truncation_depth=99 is more than num_inference_steps=20; choose 1 to 20",
        ),
        ("sampling.truncation_depth=0", "sampling.truncation_depth: Input should be greater than 0"),
        ("sampling.no_such=1", "sampling.no_such: there is no such setting; here are"),
        ("num_steps=few", "num_steps: Input should be a valid integer"),
        ("model.weights=/no/where", "model.weights: /no/where does not exist"),
        ("model.family=nothing", "model.family: there is no 'nothing'; give one of "),
        (
            "rewards.0.reward=nothing",
            "reward: there is no 'nothing'; give one of action, aesthetic, ",
        ),
        ("rewards.0.colour=red", "colour"),
        ("rewards.0.weights=/no/where", "/no/where"),
        (
            "prompts.train=/dev/null",
            "prompts.train: cannot read the prompt file /dev/null, which is no file",
        ),
        ("runtime.num_workers=3", "cannot be shared evenly by runtime.num_workers=3"),
    ],
)
def test_bad_settings_are_one_clear_sentence(setting: str, message: str) -> None:
    assert message in _refused("train", "shapes_hps", setting)


def test_an_unknown_recipe_lists_the_known() -> None:
    message = _refused("train", "nothing")
    assert "there is no recipe 'nothing'; give the path of a YAML file or one of " in message
    assert "shapes_hps, shapes_hps_aesthetic" in message


def test_an_unwritable_output_folder_is_refused_before_work() -> None:
    Path("file").write_text("")
    assert "cannot be written" in _refused("train", "shapes_hps", "--runs-dir", "file/runs")


def test_nothing_to_resume() -> None:
    assert "there is no unfinished run of 'shapes_hps' with these settings" in _refused(
        "train", "shapes_hps", "--resume"
    )
    assert "there is no run 'mine'" in _refused("train", "shapes_hps", "--resume", "--run-name", "mine")


def test_a_tracking_server_that_is_down_stops_the_run_before_work() -> None:
    with failing_server(hang=False) as server:
        assert server.address in _refused("train", "shapes_hps", f"tracking.uri={server.address}")
        assert server.num_connections == 2  # MLflow's own default retries for four minutes
    assert [path.name for path in Path("runs").glob("*/*")] == ["recipe.yaml"]


def test_generate_and_evaluate_with_and_without_an_adapter(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    recipe = str(write_tiny(tmp_path, tiny_pipeline_folder))
    made = CliRunner().invoke(app, ["generate", recipe, "a red star moving up", "-o", "star.mp4"])
    assert made.exit_code == 0, made.output
    assert Path(made.stdout.strip()) == tmp_path / "star.mp4"
    scored = CliRunner().invoke(app, ["evaluate", recipe, "-o", "scores.json"])
    assert scored.exit_code == 0, scored.output
    assert "eval/reward/brightness" in scored.stdout
    assert Path("scores.json").exists()
    assert "nothing has no adapter; give a folder with adapter_model.safetensors" in _refused(
        "evaluate", recipe, "--adapter", "nothing"
    )


def test_a_truncated_weight_file_is_named(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(tiny_pipeline_folder, weights)
    file = weights / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert str(weights) in _refused("generate", str(write_tiny(tmp_path, weights)), "a star")


@pytest.mark.parametrize("kind", ["models", "rewards", "metrics"])
def test_list_describes_every_file_of_the_folder(kind: str) -> None:
    """Plugins are alone in their folder, besides the shared code in ``base.py``, ``core/`` and
    ``adapters/``."""
    result = CliRunner().invoke(app, ["list", kind])
    assert result.exit_code == 0
    plugins = {path.stem for path in (PACKAGE / kind).iterdir() if not path.name.startswith("_")}
    assert _listed(result.stdout) == plugins - {"base", "core", "adapters"}


@pytest.mark.parametrize("registry", [REWARDS, METRICS, FAMILIES, ALGORITHMS])
def test_sources_say_what_the_imported_classes_say(registry: Registry) -> None:
    for name in registry.names():
        source, imported = registry.read(name), registry.resolve(name)
        assert imported.__doc__.strip().splitlines()[0] == source.summary
        assert all(getattr(imported, attribute) == value for attribute, value in source.attributes.items())
        needed = {"Reward": ("granularity", "unit", "default_weights", "licence"), "Metric": ("unit",)}
        assert source.attributes.keys() >= set(needed.get(registry.kind, ()))


WITHOUT_FRAMEWORKS = """
import contextlib, sys
from vader_ray.cli import app
from vader_ray.config import load
for command in sys.argv[1:]:
    with contextlib.suppress(SystemExit):
        app(command.split(), prog_name="vader-ray")
print("imported:", *{"torch", "ray", "mlflow", "diffusers", "transformers"} & sys.modules.keys())
"""


def test_lists_help_and_unknown_names_need_no_framework() -> None:
    lists = [f"list {kind}" for kind in ("recipes", "rewards", "metrics", "models", "algorithms", "sweeps")]
    unknown = ["rewards.0.reward=hsp", "model.family=wam", "algorithm.name=ppo"]
    commands = [
        *lists,
        *("--help", "--version", "check shapes_hps --devices h1000"),
        *(f"train shapes_hps {each}" for each in unknown),
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FRAMEWORKS, *commands], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("imported:\n")
    assert len(re.findall("^vader-ray: ", done.stderr, re.MULTILINE)) == 4


def test_list_describes_every_algorithm() -> None:
    assert _listed(CliRunner().invoke(app, ["list", "algorithms"]).stdout) >= {"ddpo", "dpo", "vader"}


def test_list_describes_every_recipe() -> None:
    result = CliRunner().invoke(app, ["list", "recipes"])
    assert result.exit_code == 0
    recipes = PACKAGE / "recipes"
    files = [*recipes.glob("*.yaml"), *recipes.glob("models/*.yaml")]
    assert _listed(result.stdout) == {str(path.relative_to(recipes).with_suffix("")) for path in files}


def _listed(table: str) -> set[str]:
    """Names of the first column that have a description in the second."""
    return set(re.findall(r"^ ([\w/]+) +\S", table, re.MULTILINE))


def test_list_refuses_what_it_does_not_know() -> None:
    assert "'dogs' cannot be listed; choose one of models, rewards, metrics, recipes, algorithms" in _refused(
        "list", "dogs"
    )


def test_the_version_is_that_of_the_package() -> None:
    done = subprocess.run([sys.executable, "-m", "vader_ray", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, metadata.version("vader-ray"))


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"LC_ALL": "C", "PYTHONUTF8": "0"}, "é−星"),
        ({"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, "é−星"),
        ({"PYTHONIOENCODING": "ascii"}, r"\xe9\u2212\u661f"),
        ({"PYTHONIOENCODING": "latin-1"}, r"é\u2212\u661f"),
    ],
)
def test_every_letter_survives_an_ascii_locale(environment: dict[str, str], shown: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vader_ray", "check", "é−星"],
        capture_output=True,
        env=os.environ | environment,
        check=False,
    )
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    assert done.returncode == 2, done.stderr
    assert f"vader-ray: there is no recipe '{shown}'; give" in done.stderr.decode(encoding)


def test_debug_shows_the_traceback_of_a_users_mistake() -> None:
    result = CliRunner().invoke(app, ["--debug", "list", "dogs"])
    assert isinstance(result.exception, UserError)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a bug of ours or of a library")

    monkeypatch.setattr("vader_ray.plugins.Registry.names", broken)
    result = CliRunner().invoke(app, ["list", "models"])
    assert type(result.exception) is ValueError
    assert result.exit_code == 1


def test_an_output_that_cannot_be_written_is_named(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    Path("file").write_text("")
    recipe = str(write_tiny(tmp_path, tiny_pipeline_folder))
    assert "file/scores.json cannot be written" in _refused("evaluate", recipe, "-o", "file/scores.json")
    assert "file/star.mp4 cannot be written" in _refused("generate", recipe, "a star", "-o", "file/star.mp4")


def test_fetch_loads_every_reward_and_metric_and_names_the_models_folder(tmp_path: Path) -> None:
    measured = f"eval_metrics=[{{metric: clip_diversity, weights: {save_clip(tmp_path)}}}]"
    result = CliRunner().invoke(app, ["fetch", "shapes_hps", measured])
    assert result.exit_code == 0, result.output
    assert "reward  hps: complete, it loads" in result.stdout
    assert "metric  clip_diversity: complete, it loads" in result.stdout
    assert "checkpoints/text_to_video" in result.stdout


def test_fetch_says_what_a_hub_out_of_reach_did_not_give() -> None:
    message = _refused("fetch", "shapes_hps", "model.weights=owner/name")
    assert "'owner/name' is neither a local folder nor in the Hugging Face cache" in message


def test_show_prints_every_setting_as_an_override_with_its_origin() -> None:
    shown = CliRunner().invoke(app, ["show", "wan_1_3b_hps", "sampling.eta=0.5"]).stdout
    assert re.search(r"^model.weights=Wan-AI/Wan2.1-T2V-1.3B-Diffusers +# models/wan_1_3b.yaml$", shown, re.M)
    assert re.search(r"^prompts.train=packaged:animal_actions +# common/published.yaml$", shown, re.M)
    assert re.search(r"^sampling.eta=0.5 +# override$", shown, re.M)
    assert re.search(r"^optimizer.betas=\[0.9, 0.999\] +# default$", shown, re.M)
    settings = [line.rpartition("  # ")[0].rstrip() for line in shown.splitlines()]
    assert load("wan_1_3b_hps", settings) == load("wan_1_3b_hps", ["sampling.eta=0.5"])


def test_init_writes_a_recipe_that_holds_another_reward_out() -> None:
    made = ["init", "mine.yaml", "--model", "wan_1_3b", "--reward", "pickscore", "rewards.0.frames=first:1"]
    assert CliRunner().invoke(app, made).stdout == "mine.yaml\n"
    config, base = load("mine.yaml"), load("wan_1_3b_hps")
    assert (config.name, config.sampling, config.model) == ("mine", base.sampling, base.model)
    assert [(each.reward, each.frames) for each in config.rewards] == [("pickscore", "first:1")]
    assert config.guard_metrics() == ("eval/reward/hps", "eval/motion")
    assert "mine.yaml exists; name another file, or delete it" in _refused(*made)
    refused = _refused("init", "other.yaml", "--model", "wan_1_3b", "--reward", "hsp")
    assert "did you mean 'hps'?" in refused


def test_init_finds_settings_that_fit(tiny_pipeline_folder: Path) -> None:
    base = write_tiny(Path(), tiny_pipeline_folder, eval_rewards=[{"reward": "sharpness"}])
    command = ["init", "mine.yaml", "--model", str(base), "--reward", "brightness", "--gpu"]
    result = CliRunner().invoke(app, [*command, "2xl4"])
    assert result.exit_code == 0, result.output
    assert "# 2xl4: fits with runtime.num_workers=2" in Path("mine.yaml").read_text()
    assert load("mine.yaml").runtime.num_workers == 2


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("vader-ray train wan_1", {"wan_14b_hpsv3", "wan_1_3b_hps", "wan_1_3b_video_reward"}),
        ("vader-ray check wan_1_3b_hps rewards.0.ve", {"rewards.0.version="}),
        ("vader-ray train nothing sampling", set()),
    ],
)
def test_recipes_and_settings_are_completed(typed: str, completed: set[str]) -> None:
    position = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    result = CliRunner().invoke(
        app, prog_name="vader-ray", env={"_VADER_RAY_COMPLETE": "complete_bash", **position}
    )
    assert set(result.stdout.split()) == completed


def test_sweep_without_a_name_lists_the_packaged_ones() -> None:
    listed = CliRunner().invoke(app, ["sweep"]).stdout
    assert {line.partition(":")[0] for line in listed.splitlines()} == set(sweep_names())
    assert "hps_k_sweep: How many denoising steps should carry the reward's gradient?" in listed
    assert _listed(CliRunner().invoke(app, ["list", "sweeps"]).stdout) == set(sweep_names())
    assert "there is no sweep 'hps_k_swep'; did you mean 'hps_k_sweep'?" in _refused("sweep", "hps_k_swep")


def test_sweep_runs_a_script_with_its_arguments_and_exit_status() -> None:
    Path("mine.py").write_text("import sys\nprint(sys.argv)\nsys.exit(7)\n")
    command = [
        sys.executable,
        "-m",
        "vader_ray",
        "sweep",
        "mine.py",
        "num_steps=2",
        "--num-trials",
        "3",
        "-h",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (
        7,
        f"sweep mine: starting mine.py\n{['mine.py', 'num_steps=2', '--num-trials', '3', '-h']}\n",
    )


CLUSTERS = ("aws", "gcp", "image", "kuberay", "local", "slurm")


def test_every_packaged_file_of_a_cluster_belongs_to_one_kind() -> None:
    packaged = [path.relative_to(FILES) for path in FILES.rglob("*") if path.is_file()]
    assert sorted(name for kind in CLUSTERS for name in files_of(kind)) == sorted(packaged)


@pytest.mark.parametrize("kind", CLUSTERS)
def test_clusters_init_writes_the_packaged_files_once(kind: str) -> None:
    made = CliRunner().invoke(app, ["clusters", "init", kind, "mine"])
    assert made.exit_code == 0, made.output
    written = {path.relative_to("mine"): path.read_bytes() for path in Path("mine").rglob("*.*")}
    assert written
    assert written == {name: (FILES / name).read_bytes() for name in written}
    main = next(iter(made.stdout.splitlines()))
    assert made.stdout.endswith(f"then follow the steps at the top of {main}\n")
    assert f"{main}" in _refused("clusters", "init", kind, "mine")
    placeholders = set(re.findall("^fill in (<.*?>): mine/", made.stdout, re.MULTILINE))
    if kind == "image":  # packer's variables take the place of placeholders
        assert not placeholders
        return
    with pytest.raises(UserError, match="is not filled in") as unfinished:
        check_cluster_file(Path(main))
    assert set(re.findall("<[A-Z_]+>", str(unfinished.value))) <= placeholders
