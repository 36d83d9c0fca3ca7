"""The sections of a recipe: frozen, validated at load, unknown keys refused."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from vader_ray.paths import PairsFile, Prompts, Weights
from vader_ray.prompt_files import COLUMN

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
    """A diffusers folder, a hub id, or ``shapes:text_to_video``."""
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
    replay: bool | Literal["earlier", "auto"] = True
    """Recompute each graded denoiser call in the backward pass: exact, one more forward each, memory flat in K. With
    ``earlier`` the last one is kept instead (at K = 1: no recomputation): exact, one forward less, and its activations
    are in memory beside those of a portion of decoder and rewards. ``auto``: the fastest that the free memory allows,
    chosen once before the run by what `vader-ray check --devices` counts."""
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


class VaderConfig(Settings):
    """VADER: the gradient of the reward through the graded denoising steps of ``sampling``."""

    name: Literal["vader"] = "vader"
    base_pull: NonNegativeFloat = 0.0
    """Weight of the pull to the pretrained model: the objective less so many times the mean over the graded denoising steps
    of the squared distance between what the denoiser predicts with the adapter and without it, for the same latents; a mean
    over elements, a sum over the branches of guidance. One denoiser call more for each graded one."""


class DdpoConfig(Settings):
    """DDPO with importance sampling: a policy gradient over the denoising steps; needs ``sampling.eta`` above 0."""

    name: Literal["ddpo"]
    num_updates: PositiveInt = 1
    """Optimizer updates on the videos of one step, each over all of them."""
    clip_range: PositiveFloat = 1e-4
    """A video's denoising step pulls no further once its probability ratio per element of the latents has moved so far."""
    max_advantage: PositiveFloat = 5.0
    """Bound on normalised rewards, in standard deviations."""
    buffer_size: PositiveInt = 32
    """Rewards that are remembered of each prompt, to normalise the next."""
    min_count: PositiveInt = 16
    """Remembered rewards from which on a prompt is normalised by its own; before, by those of the step."""

    @model_validator(mode="after")
    def _buffer_fills(self) -> Self:
        if self.min_count > self.buffer_size:
            raise ValueError(f"min_count={self.min_count} is never reached by buffer_size={self.buffer_size}; raise buffer_size")
        return self


class DpoConfig(Settings):
    """Diffusion-DPO: prefer the better of two videos of one prompt, by denoising errors. Timesteps are those of sampling."""

    name: Literal["dpo"]
    num_updates: PositiveInt = 1
    """Optimizer updates on the pairs of one step, each over all of them with fresh timesteps and noise."""
    num_draws: PositiveInt = 1
    """Timesteps and noises drawn for each pair in each update."""
    beta: PositiveFloat = 2000.0
    """How much the model is held to the pretrained one; the authors use 2000 and 5000."""
    pairs: PairsFile | None = None
    """A file of pairs, Parquet or JSON lines with ``prompt``, ``winner`` and ``loser`` (``.mp4`` videos, or ``.npy`` frames
    as uint8 ``frames height width 3``). By default pairs are made as training goes and ranked by the rewards."""


def _algorithm_name(value: Any) -> Any:
    return value.get("name", "vader") if isinstance(value, dict) else getattr(value, "name", None)


AlgorithmConfig = Annotated[
    Annotated[VaderConfig, Tag("vader")] | Annotated[DdpoConfig, Tag("ddpo")] | Annotated[DpoConfig, Tag("dpo")],
    Discriminator(
        _algorithm_name,
        custom_error_type="algorithm",
        custom_error_message="there is no such algorithm; set name to one of ddpo, dpo, vader",
    ),
]


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
    """Prompts, as lists or as files: ``.txt`` with one prompt per line, ``.csv``, ``.jsonl`` or ``.parquet`` with a column of
    prompts. For image-to-video ``path/to/image.png | text`` each, or a folder of images, whose file names are then the texts.
    Rewards see the text."""

    column: str = COLUMN
    """Column that holds the prompts in ``.csv``, ``.jsonl`` and ``.parquet`` files."""
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
    """Report how well the videos of the embedded shapes data set follow their captions (colour, shape, direction)."""


class GuardConfig(Settings):
    """What is watched in every evaluation, never trained: when it falls while the rewards rise, they are being hacked."""

    RISING: ClassVar[frozenset[str]] = frozenset({"eval/distance_to_base"})
    """Measures of which more is worse."""

    action: Literal["none", "flag", "stop"] = "flag"
    """``flag`` says so, in the terminal and in MLflow; ``stop`` also ends the run. Either way ``best_adapter/`` stays the
    best by ``evaluation.select`` among the evaluations at which no measure was beyond its bound."""
    measures: tuple[str, ...] = ()
    """Metrics of the evaluation (``eval/reward/aesthetic``, ``eval/judge/shape``, ``eval/diversity``, ``eval/motion``,
    ``eval/distance_to_base``); by default the first of ``eval_rewards``."""
    bound: PositiveFloat = 2.0
    """How far a measure may fall (``eval/distance_to_base``: rise)."""
    unit: Literal["standard_errors", "absolute", "relative"] = "standard_errors"
    """Of the bound: standard errors of the paired difference over the held-out videos, the measure's own unit, or a share
    of what it is compared with."""
    reference: Literal["best", "base"] = "best"
    """What it is compared with: its best evaluation so far, or the base model."""
    patience: PositiveInt = 1
    """Evaluations in a row beyond the bound before it fires."""

    @model_validator(mode="after")
    def _has_a_scale(self) -> Self:
        if self.unit != "absolute" and (rising := sorted(self.RISING & set(self.measures))):
            raise ValueError(f"{rising[0]} starts at 0, so its bound cannot be {self.unit}; set guard.unit=absolute")
        return self


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
    min_workers: PositiveInt | None = None
    """Go on with so few workers while nodes are missing, and take more in when they come; by default all are waited for."""
    use_gpu: bool | None = None
    """One GPU per worker; by default when this cluster has any."""
    micro_batch_size: PositiveInt | Literal["auto"] = 1
    """Videos whose graded steps are in memory at once. ``auto``: doubled, after ``prefix_batch_size``, while it fits the free
    memory."""
    prefix_batch_size: PositiveInt | Literal["auto"] = 2
    """Videos sampled together without gradient. ``auto``: as many as fit the free memory, by doubling."""
    decode_chunk_size: PositiveInt = 4
    """Frames decoded and scored with gradient at once."""
    activation_checkpointing: ActivationCheckpointing | Literal["auto"] = "none"
    """Recompute each ``block`` of the denoiser in the backward pass: exact, a fraction of the memory, one more forward.
    ``attention`` keeps what attention gave: exact, a little more memory, and long videos pay for no second attention.
    ``auto``: as of ``sampling.replay``."""
    compile: Literal["none", "blocks"] = "none"
    """Compile the denoiser's ``blocks`` one by one: faster after a minute; exact up to the rounding of fused operations."""
    num_threads: PositiveInt = 1
    """CPU threads of a worker."""
    max_failures: NonNegativeInt = 3
    """Times that lost workers are replaced and the run continues from its last checkpoint."""
    wait_minutes: NonNegativeFloat = 0.0
    """How long to wait for nodes that an autoscaler starts; by default what the cluster lacks is refused at once. Say
    ``use_gpu: true`` with it: before the first node has come, a cluster has no GPU."""

    @model_validator(mode="after")
    def _range_fits(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers={self.min_workers} is more than num_workers={self.num_workers}")
        return self
