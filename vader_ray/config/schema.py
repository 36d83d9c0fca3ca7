"""The sections of a recipe: frozen, validated at load, unknown keys refused."""

from __future__ import annotations

from itertools import combinations, pairwise
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
    Share,
    Steps,
)
from vader_ray.paths import SHAPES_PREFIX, Prompts, Weights
from vader_ray.prompt_files import COLUMN

Threads = Annotated[int, Field(gt=0, le=2**12)]
"""CPU threads of one process."""
Strength = Annotated[float, Field(ge=0.0, le=100.0)]
"""Factor of an adapter's update."""
StrengthPoints = Annotated[
    tuple[tuple[Share, Strength], ...],
    Field(min_length=1),
    BeforeValidator(lambda given: ((0.0, given),) if isinstance(given, int | float) else given),
]
"""A schedule of such factors: points of a part of the sampling and a factor, or one number for all of it."""
FalseAlarmRate = Annotated[float, Field(gt=0.0, le=0.5)]
"""Probability of a false alarm."""
LayerName = Annotated[str, Field(min_length=1)]
"""End of the name of a layer."""
NetworkName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=100)]
"""Name of a network in a pipeline of diffusers."""
TEXT_ENCODER = "text_encoder"
"""Begin of the names of text encoders in a pipeline of diffusers."""
OptimizerName = Literal["adamw", "adamw8bit"]
"""Optimizer of the adapter."""
DecayRate = Annotated[float, Field(ge=0.0, lt=1.0)]
"""Decay rate of a running average."""


class MergedAdapter(Settings):
    """A published LoRA adapter that becomes part of the frozen model, e.g. one for sampling in few steps."""

    weights: Weights
    """A local file, a folder, or a hub id (``owner/name``)."""
    file: Annotated[str, Field(min_length=1)] | None = None
    """File in the folder or the repository; needed for a hub id."""
    scale: Strength = 1.0
    """Factor of the adapter's update."""
    denoiser: Literal["transformer_2"] | None = None
    """``transformer_2`` for an adapter of the second denoiser of Wan 2.2 A14B; by default the first one."""

    @model_validator(mode="after")
    def _names_a_file(self) -> Self:
        if self.file is None and not self.weights.startswith(("/", SHAPES_PREFIX)):
            raise ValueError(f"{self.weights} is a hub id, so name the adapter's file in it as `file`")
        return self


class ModelConfig(Settings):
    """The pretrained video diffusion model."""

    family: str = "auto"
    """A file of ``vader_ray/models`` (``modelscope``) or the dotted name of a module of yours. ``auto`` finds
    it by the pipeline's class in the ``model_index.json`` of the weights."""
    weights: Weights
    """A diffusers folder, a hub id (``owner/name``), or ``shapes:text_to_video``."""
    motion_adapter: Weights | None = None
    """AnimateDiff's motion modules, where ``weights`` is an image model of Stable Diffusion 1.5: a diffusers
    folder or a hub id. The scheduler becomes the DDIM that they were trained for."""
    precision: Precision = "float32"
    """Precision of the denoiser and the text encoder. The scheduler's arithmetic and the adapter stay in
    float32."""
    loras: tuple[MergedAdapter, ...] = ()
    """LoRA adapters of others, in diffusers' form or folders in peft's, that are merged into the frozen
    weights before training: models for few steps (LightX2V, CausVid, LCM, AnimateLCM). The trained adapter
    fits this model alone; its card names them."""
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
    networks: Annotated[tuple[NetworkName, ...], Field(min_length=1)] | None = None
    """Networks of the pipeline that get an adapter, by their names in diffusers: denoisers (``unet``,
    ``transformer``, ``transformer_2``) and, for the families of Stable Diffusion, text encoders
    (``text_encoder``, ``text_encoder_2``). By default every denoiser and no text encoder."""

    @model_validator(mode="after")
    def _networks_fit(self) -> Self:
        names = self.networks or ()
        if len(set(names)) < len(names):
            raise ValueError(f"networks={list(names)} names one network twice; name each once")
        if names and self.target_modules and len(self.text_encoders()) == len(names):
            raise ValueError(
                f"target_modules={list(self.target_modules)} are layers of a denoiser, and networks="
                f"{list(names)} has none; leave one of the two out"
            )
        return self

    def text_encoders(self) -> tuple[str, ...]:
        """Return the names of the text encoders that get an adapter."""
        return tuple(name for name in self.networks or () if name.startswith(TEXT_ENCODER))


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
    validation: Prompts
    """Prompts of the evaluations during training, never trained on: by them the best adapter, the guard and
    sweeps choose."""
    test: Prompts | None = None
    """Prompts of one evaluation at the end, of the base model and of the adapter that was kept; nothing is
    chosen by them. Without them, the numbers about a run are those of the prompts by which its adapter was
    chosen: optimistic."""

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        sets = {"train": self.train, "validation": self.validation, "test": self.test or ()}
        for one, other in combinations(sets, 2):
            if shared := sorted(set(sets[one]) & set(sets[other])):
                raise ValueError(
                    f"{len(shared)} prompts are in both {one} and {other} ({shared[0]!r}, …); take them out "
                    "of one of the two"
                )
        return self

    def all_prompts(self) -> tuple[str, ...]:
        """Return the prompts of all three sets, each once."""
        return tuple(dict.fromkeys((*self.train, *self.validation, *(self.test or ()))))


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
    """Evaluation with fixed noise: on the validation prompts before training, every ``every`` steps and after
    the last step; on the test prompts once at the end, with other noise."""

    every: Steps = 50
    """Steps between evaluations."""
    num_videos: Count = 16
    """Validation videos; if there are fewer prompts, they are repeated with other noise. Standard errors fall
    with the root of the number of prompts, and less with that of the videos of a prompt."""
    num_test_videos: Count | None = None
    """Test videos; by default one of each test prompt."""
    num_shown: Count = 4
    """Number of validation videos that are written as mp4 files and as rows of the contact sheet."""
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


class GuardConfig(Settings):
    """Guard against reward hacking: metrics that are compared in every evaluation and never trained.

    The guard fires when a metric has become worse than in an earlier evaluation, whatever the trained rewards
    do. It is a sequential test: without any real fall, the probability that it fires at all in a run is at
    most ``false_alarm_rate``, whatever the number of evaluations and metrics, if changes are symmetric
    (docs/report.md).
    """

    action: Literal["none", "flag", "stop"] = "flag"
    """``flag`` writes a message to the terminal and to MLflow; ``stop`` also ends the run; ``none`` compares
    nothing. ``best_adapter/`` is the best by ``evaluation.select`` among the evaluations in which the guard
    did not fire."""
    metrics: tuple[str, ...] = ()
    """Metrics of the evaluation that are compared (``eval/reward/aesthetic``, ``eval/diversity``,
    ``eval/motion``, ``eval/distance_to_base``, those of ``eval_metrics``); by default the first of
    ``eval_rewards``."""
    false_alarm_rate: FalseAlarmRate = 0.05
    """Largest probability of a false alarm in a run. Each evaluation spends an equal share of it, each metric
    an equal share of that; one share is kept for a run that is continued with more steps."""
    bound: NonNegativeFloat = 0.0
    """Fall, or rise of a metric that is better when low, that is tolerated: the guard fires if the fall is
    significantly more than this, in ``unit``."""
    unit: Literal["absolute", "relative", "effect_size"] = "absolute"
    """Unit of the bound: the metric's own unit, a fraction of its mean in the earlier evaluation
    (``relative``), or standard deviations of its values over the prompts there (``effect_size``)."""
    reference: Literal["any", "base"] = "any"
    """Evaluations that the metric is compared with: any earlier one, or the base model's alone."""


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
    """Recompute each ``block`` of the denoiser and of the decoder in the backward pass: exact, a fraction of
    the memory, one more forward pass. ``attention`` recomputes all of the denoiser but its attention, for a
    little more memory: faster for long videos. ``auto``: as for ``sampling.recompute``."""
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
