"""The sections of a recipe: frozen, validated at load, unknown keys refused."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    model_validator,
)

from vader_ray.config.settings import (
    ActivationCheckpointing,
    Count,
    MatmulPrecision,
    NonNegativeCount,
    Precision,
    Quantization,
    SecretUri,
    Settings,
    Steps,
)
from vader_ray.errors import did_you_mean
from vader_ray.paths import Prompts, Weights
from vader_ray.prompt_files import COLUMN

Side = Annotated[int, Field(gt=0, le=2**15)]
"""Side of a frame in pixels."""
Threads = Annotated[int, Field(gt=0, le=2**12)]
"""CPU threads of one process."""
MAX_VIDEO_GIB = 128
"""Largest video, as float32 frames; no device's memory holds a larger one and its gradient."""
Share = Annotated[float, Field(ge=0.0, le=1.0)]
"""Fraction of a whole."""
WHOLE_SAMPLING = (0.0, 1.0)
"""Interval of ``guidance_interval`` with guidance in every denoising step."""
TRUNCATIONS = (
    "last",
    "random",
    "uniform",
    "window",
    "drtune",
    "refl",
    "sparse",
    "leap",
    "bridge",
    "lagrange",
    "velocity_matching",
    "ode_adjoint",
)
"""Choices of the gradient steps: functions of `vader_ray.alignment.backward_paths`."""
Strength = Annotated[float, Field(ge=0.0, le=100.0)]
"""Factor of an adapter's update."""
StrengthPoints = Annotated[
    tuple[tuple[Share, Strength], ...],
    Field(min_length=1),
    BeforeValidator(lambda given: ((0.0, given),) if isinstance(given, int | float) else given),
]
"""A schedule of such factors: points of a part of the sampling and a factor, or one number for all of it."""
LayerName = Annotated[str, Field(min_length=1)]
"""End of the name of a layer."""
OptimizerName = Literal["adamw", "adamw8bit"]
"""Optimizer of the adapter."""
DecayRate = Annotated[float, Field(ge=0.0, lt=1.0)]
"""Decay rate of a running average."""


class ModelConfig(Settings):
    """The pretrained video diffusion model."""

    family: str
    """A file of ``vader_ray/models`` (``modelscope``) or the dotted name of a module of yours."""
    weights: Weights
    """A diffusers folder, a hub id (``owner/name``), or ``shapes:text_to_video``."""
    precision: Precision = "float32"
    """Precision of the denoiser and the text encoder. The scheduler's arithmetic and the adapter stay in
    float32."""
    decoder_precision: Precision = "float32"
    """Precision of the autoencoder. Half precision changes the reward gradient by several per cent."""
    quantization: Quantization | None = None
    """Store the frozen weights of the linear layers in the denoiser's blocks in fewer bits: ``int8`` and
    ``fp8`` (8 bits, one scale per row), ``nf4`` (4.5 bits with its scales). All is computed in ``precision``,
    and the adapter also fits the model as published. Not exact: docs/performance.md has deviations."""
    offload_decoder_cache: bool = False
    """Keep the cache of a streamed decoder (Wan, CogVideoX, LTX, Mochi) in host memory between chunks of
    frames. Exact; slower, with less GPU memory."""
    temporal_decoder_frames: Count | None = None
    """Number of frames that Stable Video Diffusion's decoder takes together, by default all. Fewer need less
    memory and show seams: the pixels change as they do with the pipeline's ``decode_chunk_size``."""


class AdapterConfig(Settings):
    """The low-rank adapter, the only trained weights; the words are peft's."""

    rank: int = Field(default=8, gt=0, le=2**14)
    """Rank of each layer's update: the number of trained parameters is proportional to it."""
    alpha: PositiveFloat = 8.0
    """Scale of the update, which is multiplied by ``alpha / rank``."""
    target_modules: Annotated[tuple[LayerName, ...], Field(min_length=1)] | None = None
    """Endings of the names of the denoiser's layers that get an adapter; by default those that the model
    family declares."""


class GradientStepConfig(Settings):
    """One gradient step of a list in ``sampling.truncation``."""

    step: NonNegativeCount
    """Index of the denoising step; the noisiest is 0."""
    coupling: Share = 1.0
    """Factor of the gradient through the denoiser's input to the earlier gradient steps."""
    gain: float = 1.0
    """Factor of the gradient at the denoiser's output."""
    prior: NonNegativeFloat = 1.0
    """Factor of ``algorithm.reference_penalty`` in this step."""
    reward_at_prediction: bool = False
    """End the sampling at this step, the last of the list, and reward the clean video that it predicts."""


class SamplingConfig(Settings):
    """The denoising procedure, and the denoising steps through which the gradient flows."""

    num_frames: Count
    """Frames of a video."""
    height: Side
    """Height of a frame in pixels."""
    width: Side
    """Width of a frame in pixels."""
    num_inference_steps: Count = 25
    """Number of denoising steps N. Time is proportional to it, memory is not."""
    guidance_scale: float = Field(default=7.5, ge=1.0)
    """Scale of classifier-free guidance; 1 switches it off and halves the denoiser's work."""
    guidance_interval: tuple[Share, Share] = WHOLE_SAMPLING
    """Part of the sampling, from 0 (its noisiest step) to 1 (its end), with guidance in the denoising steps
    before the first gradient step; step i of N is at i / N. The others call the denoiser once instead of
    twice, with the prompt alone (arXiv 2404.07724). Faster and not exact, as ``prefix_cache``: gradient steps
    and evaluations always have guidance."""
    negative_prompt: str = ""
    """Prompt of the guidance's unconditional branch."""
    eta: float = Field(default=0.0, ge=0.0, le=1.0)
    """Stochasticity of DDIM: 0 is deterministic, 1 is DDPM. Schedulers without it refuse a value above 0."""
    scheduler: str | None = Field(default=None, min_length=1)
    """Class name of a diffusers scheduler that replaces the checkpoint's own, e.g.
    ``DPMSolverMultistepScheduler``."""
    truncation: str | Annotated[tuple[GradientStepConfig, ...], Field(min_length=1)] = "last"
    """Choice of the gradient steps (VADER only): the ``last`` K denoising steps; the last k with k ``random``
    in 1…K, drawn for each training step (AlignProp; the VADER authors' random mode is K = N); K steps
    ``uniform``-ly spaced over the sampling; a ``window`` of K consecutive steps; a published method
    (``drtune``, ``refl``, ``sparse``, ``leap``, ``bridge``, ``lagrange``, ``velocity_matching``,
    ``ode_adjoint``; docs/backward_paths.md); the dotted name of a function of yours; or a list of steps."""
    truncation_depth: Count = 1
    """Truncation depth K, the number of gradient steps (VADER's Algorithm 1 with ``last``). Each adds a
    backward pass of the denoiser, and memory if ``recompute`` is off. ``refl`` always has 1, ``leap`` 2 and
    ``lagrange`` up to 4."""
    truncation_options: dict[str, float] = Field(default_factory=dict)
    """Keyword arguments of the function that ``truncation`` names (docs/backward_paths.md): ``start`` of a
    ``window``, or the ``coupling`` of ``last``, ``random``, ``uniform`` and ``window``, 0 to 1, the factor of
    the gradient through the denoiser's input to the earlier gradient steps (0 is DRTune's stopped input)."""
    num_endings: int = Field(default=1, gt=0, le=2**10)
    """Endings of each video (VADER only). The first is the ordinary one; each further one adds fresh noise to
    the finished video, as much as before its gradient steps, and repeats these with gradient, decoder and
    rewards. Gradients and scores are averaged, and each ending is a reward query (DRaFT-LV, arXiv
    2309.17400). Less variance of the gradient without another sampling; schedulers whose steps depend on
    earlier ones refuse it."""
    recompute: bool | Literal["earlier", "nested", "auto"] = True
    """Recompute each gradient step's forward pass in the backward pass instead of keeping its activations.
    Exact; one more forward pass for each, memory independent of K. With ``runtime.activation_checkpointing``
    blocks are recomputed instead, once: their inputs stay in memory, those of all gradient steps. ``nested``
    recomputes both the steps and their blocks: two more forward passes, least memory. ``earlier`` keeps the
    activations of the last gradient step, one forward pass less (at K = 1 nothing is recomputed); they are in
    memory together with those of one chunk of decoder and rewards. False keeps all. ``auto`` is the fastest
    that fits the free memory, chosen once before the run from the estimate of `vader-ray check --devices`."""
    prefix_cache: str = Field(
        default="none", pattern=r"^(none|first_block:0?\.\d+|deep_features:[1-9]\d{0,3})$"
    )
    """Reuse of features in the denoising steps before the first gradient step. For transformers
    ``first_block:THRESHOLD`` (0.05 to 0.2) skips the other blocks while the relative change of the first
    block's residual is below the threshold. For UNets ``deep_features:N`` computes the levels below the first
    resolution in every N-th step only (DeepCache, arXiv 2312.00858). Faster and not exact: the gradient steps
    start from slightly different latents. Evaluations sample without it."""

    @model_validator(mode="after")
    def _fits_memory(self) -> Self:
        gib = self.num_frames * 3 * self.height * self.width * 4 / 2**30
        if gib > MAX_VIDEO_GIB:
            raise ValueError(
                f"num_frames={self.num_frames}, height={self.height} and width={self.width} are {gib:.0f} "
                f"GiB for the frames of one video in float32; choose at most {MAX_VIDEO_GIB} GiB"
            )
        return self

    @model_validator(mode="after")
    def _interval_fits(self) -> Self:
        low, high = self.guidance_interval
        if low >= high:
            raise ValueError(
                f"guidance_interval=[{low:g}, {high:g}] is empty; choose a first number below the second"
            )
        if (low, high) == WHOLE_SAMPLING:
            return self
        if self.guidance_scale == 1:
            raise ValueError(
                f"guidance_interval=[{low:g}, {high:g}] has no effect on guidance_scale=1, which is without "
                "guidance in every step; leave it out"
            )
        if self.prefix_cache.startswith("first_block"):
            raise ValueError(
                f"guidance_interval=[{low:g}, {high:g}] changes the number of branches, whose features "
                f"prefix_cache={self.prefix_cache} compares from step to step; leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _depth_fits(self) -> Self:
        depth, steps = self.truncation_depth, self.num_inference_steps
        if depth > steps:
            raise ValueError(
                f"truncation_depth={depth} is more than num_inference_steps={steps}; choose 1 to {steps}"
            )
        if self._own_depth() is not None and depth != 1:
            raise ValueError(
                f"truncation_depth={depth} has no effect on truncation={self.truncation}, which has its own "
                "number of gradient steps; leave it out"
            )
        if self.num_endings > 1 and self.truncation not in ("last", "random"):
            raise ValueError(
                f"num_endings={self.num_endings} repeats the last denoising steps, and truncation="
                f"{self.truncation} has gradient steps before them; set truncation=last or num_endings=1"
            )
        if self.num_endings > 1 and depth == steps:
            raise ValueError(
                f"num_endings={self.num_endings} keeps the denoising steps before the last {depth}, and "
                f"num_inference_steps={steps} leaves none; lower truncation_depth or set num_endings=1"
            )
        return self

    @model_validator(mode="after")
    def _truncation_is_known(self) -> Self:
        if not isinstance(self.truncation, str):
            self._check_listed_steps(self.truncation)
            return self
        is_dotted = "." in self.truncation and all(map(str.isidentifier, self.truncation.split(".")))
        if self.truncation not in TRUNCATIONS and not is_dotted:
            raise ValueError(
                f"truncation={self.truncation} is unknown; {did_you_mean(self.truncation, TRUNCATIONS)}give "
                f"one of {', '.join(TRUNCATIONS)}, a list of steps, or the dotted name of a function of yours"
            )
        return self

    def _check_listed_steps(self, listed: tuple[GradientStepConfig, ...]) -> None:
        steps, last = [each.step for each in listed], self.num_inference_steps - 1
        if steps != sorted(set(steps)) or steps[-1] > last:
            raise ValueError(f"truncation lists the steps {steps}; list ascending ones from 0 to {last}")
        if any(each.reward_at_prediction for each in listed[:-1]):
            raise ValueError("truncation: only the last step of the list can have reward_at_prediction")
        if self.truncation_options:
            raise ValueError("truncation_options has no effect on a list of steps; leave it out")

    def _own_depth(self) -> int | None:
        """Return the largest number of gradient steps of a choice that does not have K of them."""
        if not isinstance(self.truncation, str):
            return len(self.truncation)
        return {"refl": 1, "leap": 2, "lagrange": 4}.get(self.truncation)

    def max_grad_steps(self) -> int:
        """Return the largest number of gradient steps of a training step."""
        return min(self._own_depth() or self.truncation_depth, self.num_inference_steps)

    def guided_steps(self) -> list[int]:
        """Return the denoising steps inside ``guidance_interval``."""
        (low, high), num_steps = self.guidance_interval, self.num_inference_steps
        return [step for step in range(num_steps) if low <= step / num_steps < high]


class PromptsConfig(Settings):
    """Prompts, as lists or as files.

    A ``.txt`` file has one prompt per line; of a ``.csv``, ``.jsonl`` or ``.parquet`` file one column is
    read, and of a data set ``datasets:OWNER/NAME:SPLIT`` (split ``train`` by default), which needs the
    package ``datasets``; its owner may change it, and only a run with the same prompts can be continued.
    For image-to-video models each prompt is ``path/to/image.png | text``, or a folder of images whose file
    names are the texts. Rewards and metrics get the text.
    """

    column: str = COLUMN
    """Column of data sets and of ``.csv``, ``.jsonl`` and ``.parquet`` files that holds the prompts."""
    train: Prompts
    """Prompts of the training videos: all once, in an order drawn from the seed, before any is repeated."""
    heldout: Prompts
    """Prompts of every evaluation, never trained on."""

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        if shared := sorted(set(self.train) & set(self.heldout)):
            raise ValueError(
                f"{len(shared)} held-out prompts are also trained on ({shared[0]!r}, …); "
                "take them out of one of the two"
            )
        return self


class OptimizerConfig(Settings):
    """AdamW over the adapter; the words are torch's."""

    name: OptimizerName = "adamw"
    """``adamw8bit`` keeps the running averages in 8 bits for layers of 4,096 weights and more, a quarter of
    their memory: bitsandbytes' (``pip install 'vader-ray[8bit]'``)."""
    learning_rate: PositiveFloat = 2e-4
    """Learning rate; with a ``schedule`` or a warm-up its largest value."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate over the steps, after the warm-up: constant, or a decay to 0 at ``schedule_steps``, which
    is half a cosine or linear (transformers' schedules). A function of the step alone."""
    warmup_steps: int = Field(default=0, ge=0, le=10**9)
    """Steps in which the learning rate rises linearly from 0; that of the first one is 0."""
    schedule_steps: Steps | None = None
    """Steps of warm-up and decay together, by default ``num_steps``. With a decay, a run can be continued
    beyond its ``num_steps`` only if this was larger from its start."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """Decay rates of the running averages of the gradient and of its square."""
    eps: PositiveFloat = 1e-8
    """Term added to the denominator of the update, for numerical stability."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay, relative to the learning rate."""
    max_grad_norm: PositiveFloat = 1.0
    """Largest L2 norm of the gradient over all workers; a larger gradient is scaled down to it."""
    max_nonfinite_steps: Steps = 3
    """A step whose gradient is not finite changes nothing and is counted; this many in a row end the run with
    an error."""
    ema_decay: DecayRate = 0.0
    """Decay of an exponential moving average of the adapter's weights over the updates, e.g. 0.99; 0 keeps
    none. With one, evaluations and the saved adapters have the averaged weights; a checkpoint also has those
    that are trained, in ``raw_adapter/``. The decay rises from 0 as (1 + n) / (10 + n) with the number of
    updates, as in diffusers' ``EMAModel``."""

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.schedule == "constant" and self.schedule_steps is not None:
            raise ValueError(
                f"schedule_steps={self.schedule_steps} has no effect on schedule=constant; set "
                "schedule=cosine or schedule=linear"
            )
        return self

    def has_constant_rate(self) -> bool:
        """Return whether the learning rate is the same in all steps."""
        return self.schedule == "constant" and self.warmup_steps == 0

    def decay_steps(self, num_steps: int) -> int | None:
        """Return the steps after which the learning rate is 0 in a run of ``num_steps``; None for never."""
        return None if self.schedule == "constant" else self.schedule_steps or num_steps

    def check_steps(self, num_steps: int) -> None:
        """Refuse a schedule that does not fit the number of steps of a run.

        Raises:
            ValueError: the learning rate would be 0 before the run ends, or would never decay.
        """
        steps = self.decay_steps(num_steps)
        if steps is not None and steps < num_steps:
            raise ValueError(
                f"optimizer.schedule_steps={steps} is less than num_steps={num_steps}, and the learning rate "
                f"is 0 after it; choose at least {num_steps}"
            )
        if steps is not None and self.warmup_steps >= steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.warmup_steps} leaves no step for the decay, which ends at "
                f"step {steps}; choose less than {steps}"
            )


class EvaluationConfig(Settings):
    """Evaluation on held-out prompts with fixed noise: before training, every ``every`` steps, and after the
    last step."""

    every: Steps = 50
    """Steps between evaluations."""
    num_videos: Count = 16
    """Held-out videos; if there are fewer prompts, they are repeated with other noise. Standard errors fall
    with its root."""
    num_shown: Count = 4
    """Number of held-out videos that are written as mp4 files and as rows of the contact sheet."""
    frames_per_second: int = Field(default=8, gt=0, le=1000)
    """Frame rate of the mp4 files; no effect on the numbers."""
    select: str | None = None
    """Metric by which the best adapter is kept, e.g. ``eval/reward/aesthetic``; by default the first of
    ``eval_rewards``, and without them the objective itself, ``eval/objective``."""


class GenerationConfig(Settings):
    """Use of a trained adapter by ``vader-ray generate`` and ``vader-ray evaluate``; no effect on training
    and its evaluations."""

    adapter_strength: StrengthPoints = ((0.0, 1.0),)
    """Factor of the adapter's update: 0 is the pretrained model, 1 the trained one. Either a number, or
    points ``[part of the sampling, factor]`` of a schedule, linear between them and constant before and
    after; denoising step i of N is at i / N. ``[[0, 0], [0.5, 1]]`` starts with the pretrained model, which
    decides layout and motion, and ends with the trained one (annealed importance guidance, arXiv 2409.06493,
    with scaled updates in place of mixed predictions)."""

    @model_validator(mode="after")
    def _points_ascend(self) -> Self:
        positions = [position for position, _ in self.adapter_strength]
        if any(one >= other for one, other in pairwise(positions)):
            raise ValueError(
                f"adapter_strength has points at {positions}; order them by their first number, each of them "
                "once"
            )
        return self

    def adapter_strengths(self, num_steps: int) -> list[float] | None:
        """Return the factor of each denoising step; None if it is 1 in all of them."""
        strengths = [_interpolate(self.adapter_strength, step / num_steps) for step in range(num_steps)]
        return None if set(strengths) == {1.0} else strengths


def _interpolate(points: Sequence[tuple[float, float]], position: float) -> float:
    """Return the value at a position: linear between points, constant beyond the first and the last."""
    for (left, before), (right, after) in pairwise(points):
        if left <= position <= right:
            return before + (after - before) * (position - left) / (right - left)
    return points[0][1] if position < points[0][0] else points[-1][1]


class GuardConfig(Settings):
    """Guard against reward hacking: metrics that are compared in every evaluation and never trained.

    The guard fires when a metric becomes worse by more than a bound, whatever the trained rewards do.
    """

    action: Literal["none", "flag", "stop"] = "flag"
    """``flag`` writes a message to the terminal and to MLflow; ``stop`` also ends the run; ``none`` compares
    nothing. ``best_adapter/`` is the best by ``evaluation.select`` among the evaluations in which no metric
    was beyond its bound."""
    metrics: tuple[str, ...] = ()
    """Metrics of the evaluation that are compared (``eval/reward/aesthetic``, ``eval/diversity``,
    ``eval/motion``, ``eval/distance_to_base``, those of ``eval_metrics``); by default the first of
    ``eval_rewards``."""
    bound: PositiveFloat = 2.0
    """Largest tolerated fall, or rise of a metric that is better when low, in ``unit``."""
    unit: Literal["standard_errors", "absolute", "relative"] = "standard_errors"
    """Unit of the bound: standard errors of the paired difference over the held-out videos, the metric's own
    unit, or a fraction of the reference."""
    reference: Literal["best", "base"] = "best"
    """Evaluation that the metric is compared with: its best one so far, or the base model's."""
    patience: Steps = 1
    """Number of evaluations in a row beyond the bound before the guard fires."""


class CheckpointConfig(Settings):
    """Checkpoints: all that an exact continuation needs."""

    every: Steps = 20
    """Steps between checkpoints; one more is written at the end."""
    keep: Count = 2
    """Number of latest checkpoints that are kept on disk."""
    retry_minutes: NonNegativeFloat = Field(default=10.0, le=25.0)
    """Longest pause in minutes while a full disk or an unreachable storage refuses checkpoints and results;
    then the run ends and can be resumed."""


class TrackingConfig(Settings):
    """Destination of the run's records in MLflow."""

    uri: SecretUri | None = None
    """URI of the tracking server or database; by default ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the
    working directory. A password in it is in no file of a run; better set ``MLFLOW_TRACKING_URI``."""
    experiment: str = "vader_ray"
    """Name of the MLflow experiment; it is created if it does not exist."""
    system_metrics: bool = True
    """Log CPU, memory and GPU use of the first worker's machine."""


class RuntimeConfig(Settings):
    """Number of workers, memory and speed. The result depends on it by the order of floating-point sums
    alone, but for the two settings of precision."""

    num_workers: Count = 1
    """Ray Train workers, which share the videos of each step evenly."""
    min_workers: Count | None = None
    """Continue with as few as this many workers while nodes are missing, and add workers when nodes return;
    by default the run waits for all."""
    use_gpu: bool | None = None
    """Reserve one GPU for each worker; by default if the cluster has any."""
    shard: Count = 1
    """Number G of consecutive workers over which the frozen weights of denoiser and text encoders are
    divided: each keeps 1/G of them and gathers one block at a time (FSDP2). Adapter, decoder and rewards are
    whole on every worker. Exact up to the order of sums; each call of the denoiser sends its weights over the
    network. A divisor of ``num_workers``."""
    context_parallel: Count = 1
    """Number C of consecutive workers that compute the same videos, each 1/C of the tokens in every call of
    the denoiser (Ulysses attention), with about 1/C of its activations and of its work. There can then be
    more workers than videos. Exact up to the order of sums. Each of the C workers decodes and scores the
    videos. For the families ``wan`` and ``ltx``; C must divide the number of tokens and of attention heads,
    and ``num_workers``."""
    guidance_parallel: bool = False
    """Compute the two branches of classifier-free guidance at the same time, on two workers, or on two groups
    of ``context_parallel`` workers. Exact up to the order of sums. Each of them decodes and scores the
    videos."""
    offload_weights: bool = False
    """Keep the frozen weights of denoiser and text encoders, or this worker's share of them, in host memory
    and copy one block at a time to the GPU. Exact up to the order of sums; slower, with less GPU memory."""
    micro_batch_size: Count | Literal["auto"] = 1
    """Videos whose gradient steps are in memory together; faster, with more memory. ``auto`` doubles it,
    after ``prefix_batch_size``, while the step fits the free memory."""
    prefix_batch_size: Count | Literal["auto"] = 2
    """Videos that are sampled together in denoising steps without gradient. ``auto`` doubles it while it fits
    the free memory."""
    decode_chunk_size: Count = 4
    """Frames that are decoded and scored with gradient together; fewer need less memory."""
    activation_checkpointing: ActivationCheckpointing | Literal["auto"] = "none"
    """Recompute each ``block`` of the denoiser in the backward pass: exact, a fraction of the memory, one
    more forward pass. ``attention`` recomputes all but attention, for a little more memory: faster for long
    videos. ``auto``: as for ``sampling.recompute``."""
    compile: Literal["none", "blocks"] = "none"
    """Compile the denoiser's ``blocks`` one by one with torch.compile: faster after a minute or so; exact up
    to the rounding of fused operations."""
    matmul_precision: MatmulPrecision = "tf32"
    """Precision on NVIDIA GPUs of float32 matrix products and convolutions in the decoder, and in rewards and
    metrics without ``placement``, backward passes included. ``tf32`` rounds the factors to 10 bits of
    mantissa, for several times the speed; ``highest`` rounds nothing. No effect on CPUs, on half precision
    and on the denoiser, which keeps torch's own settings. A continued run must repeat it."""
    gradient_precision: Literal["float32", "bfloat16"] = "float32"
    """Precision in which several workers send and add the adapter's gradients. ``bfloat16`` halves the bytes
    on the network and rounds each sum to 8 bits. A continued run must repeat it."""
    num_threads: Threads = 1
    """CPU threads of torch in each worker."""
    max_failures: NonNegativeCount = 3
    """Number of times that lost workers are replaced and the run continues from its last checkpoint."""
    grace_seconds: NonNegativeFloat = 20.0
    """Longest wait after SIGTERM for the step in progress to end with a checkpoint. Slurm and Kubernetes kill
    a process 30 seconds after SIGTERM, ``docker stop`` after 10, by default."""
    wait_minutes: NonNegativeFloat = 0.0
    """Longest wait in minutes for nodes that an autoscaler starts; with 0, a run that needs more than the
    cluster has is refused at once. Set ``use_gpu: true`` with it: before its first node has started, a
    cluster has no GPU."""

    @model_validator(mode="after")
    def _range_fits(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers={self.min_workers} is more than num_workers={self.num_workers}")
        return self

    @property
    def workers_per_video(self) -> int:
        """Number of consecutive workers that compute the same videos together."""
        return self.context_parallel * (2 if self.guidance_parallel else 1)

    @property
    def num_video_groups(self) -> int:
        """Number of groups of workers that share the videos of a step."""
        return self.num_workers // self.workers_per_video

    @model_validator(mode="after")
    def _videos_are_computed_by_whole_groups(self) -> Self:
        size = self.workers_per_video
        settings = f"context_parallel={self.context_parallel} and guidance_parallel={self.guidance_parallel}"
        if self.num_workers % size:
            raise ValueError(
                f"{settings} need groups of {size} workers, and num_workers={self.num_workers} is not a "
                f"multiple of {size}; choose one"
            )
        if size > 1 and self.min_workers is not None:
            raise ValueError(
                f"min_workers={self.min_workers} cannot be combined with {settings}, whose groups need all "
                "their workers; leave min_workers out"
            )
        if self.context_parallel > 1 and self.compile == "blocks":
            raise ValueError(
                f"compile=blocks cannot be combined with context_parallel={self.context_parallel}, which "
                "exchanges tokens within the blocks; set compile=none"
            )
        return self

    @model_validator(mode="after")
    def _groups_fit_into_each_other(self) -> Self:
        if self.shard > 1 and self.guidance_parallel:
            raise ValueError(
                f"guidance_parallel=True cannot be combined with shard={self.shard}, whose workers gather "
                "the same blocks at the same time; use context_parallel with shard"
            )
        if max(self.context_parallel, self.shard) % min(self.context_parallel, self.shard):
            raise ValueError(
                f"shard={self.shard} is neither a multiple nor a divisor of context_parallel="
                f"{self.context_parallel}; choose one"
            )
        return self

    @model_validator(mode="after")
    def _groups_are_whole(self) -> Self:
        if self.num_workers % self.shard:
            raise ValueError(
                f"shard={self.shard} does not divide num_workers={self.num_workers}; choose a divisor"
            )
        if self.shard > 1 and self.min_workers is not None:
            raise ValueError(
                f"min_workers={self.min_workers} cannot be combined with shard={self.shard}, whose groups "
                "need all their workers; leave min_workers out"
            )
        return self
