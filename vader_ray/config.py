"""Every setting of a run: frozen, validated at load, unknown keys refused. Imports no framework.

``load("world_hps", ["sampling.truncation_depth=2"])`` reads a recipe (a packaged name or the path of a YAML file),
applies dotted overrides, resolves every path and returns an `ExperimentConfig` that can travel as plain JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from vader_ray.locations import PACKAGE, Prompts
from vader_ray.locations import Weights as Weights
from vader_ray.locations import locate as locate
from vader_ray.locations import split_image as split_image

RECIPES = PACKAGE / "recipes"

ActivationCheckpointing = Literal["none", "block", "attention"]
Precision = Literal["float32", "bfloat16", "float64"]
FrameRule = Annotated[str, Field(pattern=r"^(all|first_middle_last|(random|first|stride):[1-9]\d*|frame:\d+)$")]


class Settings(BaseModel):
    """Base of every section: immutable, strict about unknown keys, described by the sentence under each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class ModelConfig(Settings):
    """The pretrained video diffusion model."""

    family: str
    """A file of ``vader_ray/models`` (``modelscope``) or the dotted name of a module of yours."""
    weights: Weights
    """A diffusers folder, a hub id, or ``world:text_to_video``."""
    precision: Precision = "float32"
    """Precision of the denoiser and the text encoder. Sampling arithmetic and the adapter stay in float32."""
    decoder_precision: Precision = "float32"
    """Precision of the autoencoder; half precision bends the reward gradient by several per cent."""
    offload_decoder_cache: bool = False
    """Keep the cache of a causal decoder (Wan, CogVideoX) in host memory between portions: exact, slower, less GPU memory."""
    temporal_decoder_frames: PositiveInt | None = None
    """Frames that Stable Video Diffusion's decoder sees together, by default all. Fewer need less memory and leave seams:
    the pixels change as with the pipeline's ``decode_chunk_size``."""


class AdapterConfig(Settings):
    """The low-rank update, in peft's words."""

    rank: PositiveInt = 8
    alpha: PositiveFloat = 8.0
    target_modules: tuple[str, ...] | None = None
    """Names of the denoiser's layers that get an adapter; by default those that the model's family declares."""


class SamplingConfig(Settings):
    """How a video is made, and which denoising steps carry gradient."""

    num_frames: PositiveInt
    height: PositiveInt
    width: PositiveInt
    num_inference_steps: PositiveInt = 25
    guidance_scale: float = Field(default=7.5, ge=1.0)
    """Classifier-free guidance; 1 switches it off."""
    negative_prompt: str = ""
    eta: float = Field(default=0.0, ge=0.0, le=1.0)
    """Stochasticity of DDIM (0 deterministic, 1 DDPM); refused by schedulers that have none."""
    scheduler: str | None = None
    """Class name of a diffusers scheduler that replaces the checkpoint's own, e.g. ``DPMSolverMultistepScheduler``."""
    truncation: Literal["last", "random", "uniform", "window"] = "last"
    """Which denoising steps are graded: the ``last`` K; the last k with k ``random`` in 1…K each step (AlignProp; the
    authors' random mode is K = N); K steps ``uniform``-ly spaced over the chain; or a ``window`` of K steps."""
    truncation_depth: PositiveInt = 1
    """K, the number of graded denoising steps (Algorithm 1's cutoff for ``last``)."""
    window_start: NonNegativeInt = 0
    """First graded denoising step of a ``window``, counted from the noisiest, 0."""
    chain: bool = True
    """Keep the denoiser's input Jacobian between graded steps; off is DRTune's stopped input (cheaper, biased)."""
    replay: bool | Literal["earlier"] = True
    """Recompute each graded denoiser call in the backward pass: exact, one more forward each, memory flat in K. With
    ``earlier`` the last one is kept instead (at K = 1: no recomputation): exact, one forward less, and its activations
    are in memory beside those of a portion of decoder and rewards."""
    prefix_cache: str = Field(default="none", pattern=r"^(none|first_block:0?\.\d+)$")
    """``first_block:THRESHOLD`` (0.05 to 0.2) reuses features between denoising steps without gradient while the first
    block changes by less than that share. Not exact: the graded steps start from slightly other latents. Only
    transformers; evaluation samples without it."""

    @model_validator(mode="after")
    def _depth_fits(self) -> Self:
        depth, steps = self.truncation_depth, self.num_inference_steps
        if depth > steps:
            raise ValueError(f"truncation_depth={depth} is more than num_inference_steps={steps}; choose 1 to {steps}")
        if self.truncation == "window" and self.window_start + depth > steps:
            raise ValueError(
                f"window_start={self.window_start} + truncation_depth={depth} runs past num_inference_steps={steps}; "
                f"choose window_start of at most {steps - depth}"
            )
        if self.truncation != "window" and self.window_start:
            raise ValueError(
                f"window_start={self.window_start} has no effect on truncation={self.truncation}; set truncation=window"
            )
        return self


class PlacementConfig(Settings):
    """Ray actors that answer a reward's scores and gradients, in place of the workers."""

    actor: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the pool of actors."""
    shared: bool = False
    """Use the cluster's pool of this name, or leave one behind: trials of a sweep load a heavy reward once. It stays until
    ``vader-ray pools --stop NAME``."""
    num_replicas: PositiveInt = 1
    """Actors of the pool; requests go round."""
    num_cpus: NonNegativeFloat = 1.0
    """CPUs of each actor."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs of each actor, in fractions if it shall share one; 0 computes on the CPU."""
    resources: dict[str, PositiveFloat] = {}
    """Custom resources of the cluster, to choose the nodes."""
    runtime_env: dict[str, Any] = {}
    """Ray runtime environment of the actors, for rewards with other packages than the workers'."""
    transport: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision in which frames and gradients travel; a gradient in half precision is scaled to its range."""
    timeout_seconds: PositiveFloat = 600.0
    """Longest wait for one answer; then the actor is restarted and asked again."""
    max_retries: NonNegativeInt = 3
    """Times that one request is repeated after an actor died or was silent."""


class RewardConfig(Settings):
    """One reward of the objective."""

    model_config = ConfigDict(extra="allow")

    reward: str
    """A file of ``vader_ray/rewards`` (``hps``) or the dotted name of a module of yours. Further keys are its options."""
    label: str | None = Field(default=None, pattern=r"^[\w.\- ]+$")
    """Name in metrics (``train/reward/LABEL``), to tell apart two settings of one reward; by default its own name."""
    weight: float = 1.0
    target: float | None = None
    """Pull the score to this value (the objective is −|score − target|) instead of raising it without bound."""
    frames: FrameRule = "all"
    """Frames it sees: ``all``, ``random:n`` (the authors' mode is random:1), ``stride:n`` (theirs: 2),
    ``first:n``, ``first_middle_last`` or ``frame:i``. A causal decoder stops after the last wanted frame, and the first
    latent frame of Wan, CogVideoX and their kin is one frame: ``first:1`` decodes nothing else."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of its networks; preprocessing, scores and ∂R/∂frames stay in float32."""
    placement: PlacementConfig | None = None
    """Actors that compute it; by default the workers do."""

    @property
    def name(self) -> str:
        return self.label or self.reward.rsplit(".", 1)[-1]

    @property
    def options(self) -> dict[str, Any]:
        """The reward's own settings, checked by `vader_ray.rewards.build`."""
        return dict(self.model_extra or {})


class PromptsConfig(Settings):
    """Prompts, as lists or as files with one prompt per line; for image-to-video ``path/to/image.png | text`` each, or a
    folder of images, whose file names are then the texts. Rewards see the text."""

    train: Prompts
    heldout: Prompts
    """Prompts of every evaluation, never trained on."""

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        if shared := sorted(set(self.train) & set(self.heldout)):
            raise ValueError(
                f"{len(shared)} held-out prompts are also trained on ({shared[0]!r}, …); take them out of one of the two"
            )
        return self


class OptimizerConfig(Settings):
    """AdamW."""

    learning_rate: PositiveFloat = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat = 1.0
    max_nonfinite_steps: PositiveInt = 3
    """A step whose gradient is not finite is skipped and counted; this many in a row end the run with an error."""


class EvaluationConfig(Settings):
    """Evaluation on held-out prompts with fixed noise: before, on the cadence and after."""

    every: PositiveInt = 50
    """Steps between evaluations."""
    num_videos: PositiveInt = 16
    """Held-out videos; prompts are repeated with other noise when there are fewer."""
    num_shown: PositiveInt = 4
    """Videos that become mp4 files and rows of the contact sheet."""
    frames_per_second: PositiveInt = 8
    select: str | None = None
    """Metric by which the best adapter is kept, e.g. ``eval/reward/aesthetic``; by default the first of ``eval_rewards``,
    and without them the objective itself, ``eval/objective``."""
    judge: bool = False
    """Report how well the videos of the embedded world follow their captions (colour, shape, direction)."""


class CheckpointConfig(Settings):
    """Checkpoints: everything that an exact continuation needs."""

    every: PositiveInt = 20
    """Steps between checkpoints; one more is written at the end."""
    keep: PositiveInt = 2


class TrackingConfig(Settings):
    """MLflow."""

    uri: str | None = None
    """Tracking server; by default ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the working directory."""
    experiment: str = "vader_ray"
    system_metrics: bool = True


class MachineConfig(Settings):
    """Where a run happens. Changes its speed and memory, never its result beyond summation order."""

    num_workers: PositiveInt = 1
    use_gpu: bool | None = None
    """One GPU per worker; by default when this cluster has any."""
    micro_batch_size: PositiveInt = 1
    """Videos whose graded steps are in memory at once."""
    prefix_batch_size: PositiveInt = 2
    """Videos sampled together without gradient."""
    decode_chunk_size: PositiveInt = 4
    """Frames decoded and scored with gradient at once."""
    activation_checkpointing: ActivationCheckpointing = "none"
    """Recompute each ``block`` of the denoiser in the backward pass: exact, a fraction of the memory, one more forward.
    ``attention`` keeps what attention gave: exact, a little more memory, and long videos pay for no second attention."""
    compile: Literal["none", "blocks"] = "none"
    """Compile the denoiser's ``blocks`` one by one: faster after a minute; exact up to the rounding of fused operations."""
    num_threads: PositiveInt = 1
    """CPU threads of a worker."""
    max_failures: NonNegativeInt = 3
    """Times that lost workers are replaced and the run continues from its last checkpoint."""


class ExperimentConfig(Settings):
    """A recipe: all that decides the result of a run, and the number it is known to reach."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    seed: NonNegativeInt = 0
    num_steps: PositiveInt
    """Optimizer updates."""
    videos_per_step: PositiveInt
    """Videos of one step over all workers."""
    model: ModelConfig
    adapter: AdapterConfig = AdapterConfig()
    prompts: PromptsConfig
    sampling: SamplingConfig
    rewards: tuple[RewardConfig, ...] = Field(min_length=1)
    eval_rewards: tuple[RewardConfig, ...] = ()
    """Scored in every evaluation, never trained: they expose reward hacking."""
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    machine: MachineConfig = MachineConfig()
    must_reach: dict[str, float] = {}
    """Measured floor of this recipe: metric of the last evaluation → value."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [reward.name for reward in (*self.rewards, *self.eval_rewards)]
        if self.evaluation.select is not None and self.evaluation.select not in (metrics := self._eval_metrics()):
            raise ValueError(
                f"evaluation.select={self.evaluation.select!r} is never measured; choose one of {', '.join(metrics)}"
            )
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two rewards are called {twice[0]!r}; give one of them another `label`")
        pools = [reward.placement.actor for reward in (*self.rewards, *self.eval_rewards) if reward.placement]
        if twice := sorted({pool for pool in pools if pools.count(pool) > 1}):
            raise ValueError(f"two rewards have placement.actor={twice[0]!r}; a pool holds one reward, so name another")
        if self.videos_per_step % self.machine.num_workers:
            raise ValueError(
                f"videos_per_step={self.videos_per_step} cannot be shared evenly by machine.num_workers="
                f"{self.machine.num_workers}; choose a divisor"
            )
        return self

    def _eval_metrics(self) -> list[str]:
        return ["eval/objective", *(f"eval/reward/{reward.name}" for reward in (*self.rewards, *self.eval_rewards))]

    def selection(self) -> str:
        """The metric by which the best adapter is kept."""
        if self.evaluation.select is not None:
            return self.evaluation.select
        return f"eval/reward/{self.eval_rewards[0].name}" if self.eval_rewards else "eval/objective"

    def identity(self) -> dict[str, Any]:
        """What decides each step, as plain JSON: a run may be continued, or prolonged, only with the same identity."""
        where_and_how_long = {"machine", "tracking", "checkpoint", "num_steps", "must_reach", "description"}
        identity = self.model_dump(mode="json", exclude=where_and_how_long)
        for reward in (*identity["rewards"], *identity["eval_rewards"]):
            transport = (reward.pop("placement") or {}).get("transport", "float32")
            if transport != "float32":  # the one thing about its place that a result depends on
                reward["transport"] = transport
        return identity


class ConfigError(ValueError):
    """A setting that the user can correct; the message names its path and the remedy."""


def recipe_names() -> list[str]:
    """The packaged recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load(recipe: str, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """The validated recipe, a packaged name or the path of a YAML file, with ``a.b=value`` overrides applied.

    Raises:
        ConfigError: one line per problem, each with the field's path.
    """
    path = _recipe_path(recipe)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, not {type(document).__name__}")
    for text in overrides:
        _override(document, text)
    return validate(document, folder=path.parent)


def validate(document: Mapping[str, Any], *, folder: Path | None = None) -> ExperimentConfig:
    """The settings of a plain dict, as a recipe file or another process gives them."""
    try:
        return ExperimentConfig.model_validate(document, context={"folder": folder})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error))) from None


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Dotted paths and their values: ``{"sampling.truncation_depth": 1, "rewards.0.reward": "hps", …}``."""
    if isinstance(value, Mapping):
        items: Iterable[tuple[object, object]] = value.items()
    elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        items = enumerate(value)
    else:
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, item in items:
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _recipe_path(recipe: str) -> Path:
    if recipe in recipe_names():
        return RECIPES / f"{recipe}.yaml"
    path = Path(recipe).expanduser()
    if path.is_file():
        return path.resolve()
    raise ConfigError(f"there is no recipe {recipe!r}; give the path of a YAML file or one of {', '.join(recipe_names())}")


def _override(document: dict[str, Any], text: str) -> None:
    """Set ``a.b=value`` in a nested document; numbers address list items; the value is read as YAML."""
    address, equals, value = text.partition("=")
    if not equals or not address:
        raise ConfigError(f"{text!r} is not an override; write a.b=value")
    *parents, last = address.split(".")
    node: Any = document
    for key in parents:
        node = _child(node, key, address)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"{address}: {value!r} is not a YAML value") from None
    if isinstance(parsed, str):
        parsed = _number(parsed)
    if isinstance(node, list):
        node[_index(node, last, address)] = parsed
    else:
        node[last] = parsed


def _number(text: str) -> str | float:
    """YAML 1.1 reads 1e-4 as text; a person means the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _child(node: Any, key: str, address: str) -> Any:
    child = node[_index(node, key, address)] if isinstance(node, list) else node.setdefault(key, {})
    if not isinstance(child, (dict, list)):
        raise ConfigError(f"{address}: {key!r} is a value, not a section")
    return child


def _index(items: list[Any], key: str, address: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(f"{address}: {key!r} is no item of a list of {len(items)}")
    return int(key)


def _explain(error: ValidationError) -> Iterator[str]:
    problems = error.errors()
    places = [problem["loc"] for problem in problems]
    for problem in problems:
        if any(len(place) > len(problem["loc"]) and place[: len(problem["loc"])] == problem["loc"] for place in places):
            continue  # the list is faulty only because of its item
        path = ".".join(str(part) for part in problem["loc"]) or "recipe"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"there is no such setting; here are {', '.join(_siblings(problem['loc'][:-1]))}"
        elif problem["type"] == "missing":
            message = "is required"
        elif "Value error" not in problem["msg"]:
            message = f"{message}, not {problem['input']!r}"
        yield f"{path}: {message}"


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    model: Any = ExperimentConfig
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = model.model_fields[part].annotation
    return sorted(getattr(model, "model_fields", {}))
