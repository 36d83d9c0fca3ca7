"""The section ``sampling`` of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, model_validator

from vader_ray.config.settings import Count, NonNegativeCount, Settings, Share
from vader_ray.errors import did_you_mean

Side = Annotated[int, Field(gt=0, le=2**15)]
"""Side of a frame in pixels."""
MAX_VIDEO_GIB = 128
"""Largest video, as float32 frames; no device's memory holds a larger one and its gradient."""
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

CLIP_TRUNCATIONS = ("last", "random", "uniform", "window")
"""Those of them that are plain backpropagation, of which ``num_clips`` makes use."""


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
    """Frames of a video, or of one clip of it."""
    height: Side
    """Height of a frame in pixels."""
    width: Side
    """Width of a frame in pixels."""
    num_clips: int = Field(default=1, gt=0, le=2**10)
    """Clips of a video (VADER only), for models that make videos from images: the last decoded frame of a
    clip is the image of the next one and counts once, so a video has ``num_clips`` · (``num_frames`` − 1) + 1
    frames, of which rewards and metrics choose theirs. The longest videos of the VADER paper have 3 clips.
    Time is proportional to it; memory grows only by the frames that rewards score."""
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
    truncation_clips: Count | None = None
    """Clips of a video that carry gradient, the last ones; by default all ``num_clips``. The gradient steps
    of each are those of ``truncation``. The gradient passes from a clip to the one before through the image
    between them: the autoencoder, the image encoder and the gradient steps that see the image. With 1 the
    earlier clips only make the image with which the last one begins. The gradient steps of the others are
    computed again in the backward pass, after which they need no memory."""
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
        gib = self.total_frames() * 3 * self.height * self.width * 4 / 2**30
        if gib > MAX_VIDEO_GIB:
            raise ValueError(
                f"{self.length_given()}, height={self.height} and width={self.width} are {gib:.0f} GiB for "
                f"the frames of one video in float32; choose at most {MAX_VIDEO_GIB} GiB"
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

    @model_validator(mode="after")
    def _clips_fit(self) -> Self:
        if self.truncation_clips is not None and self.truncation_clips > self.num_clips:
            raise ValueError(
                f"truncation_clips={self.truncation_clips} is more than num_clips={self.num_clips}; choose 1 "
                f"to {self.num_clips}, or leave it out"
            )
        if self.num_clips == 1:
            return self
        if self.num_frames == 1:
            raise ValueError(
                f"num_clips={self.num_clips} continues from the last frame of a clip, and with num_frames=1 "
                "it is the first; choose 2 or more"
            )
        if self.num_endings > 1:
            raise ValueError(
                f"num_endings={self.num_endings} repeats the end of one sampling, and num_clips="
                f"{self.num_clips} has several; leave one of the two out"
            )
        if self.truncation not in CLIP_TRUNCATIONS or self.truncation_options.get("coupling", 1) != 1:
            raise ValueError(
                f"num_clips={self.num_clips} passes plain gradients from clip to clip, and truncation="
                f"{self.truncation} with truncation_options={self.truncation_options} scales them between "
                f"denoising steps; choose {' or '.join(CLIP_TRUNCATIONS)}, without coupling"
            )
        return self

    def _own_depth(self) -> int | None:
        """Return the largest number of gradient steps of a choice that does not have K of them."""
        if not isinstance(self.truncation, str):
            return len(self.truncation)
        return {"refl": 1, "leap": 2, "lagrange": 4}.get(self.truncation)

    def max_grad_steps(self) -> int:
        """Return the largest number of gradient steps of a training step."""
        return min(self._own_depth() or self.truncation_depth, self.num_inference_steps)

    def total_frames(self) -> int:
        """Return the number of frames of a video: the frame between two clips counts once."""
        return self.num_clips * (self.num_frames - 1) + 1

    def length_given(self) -> str:
        """Describe the length of a video by its settings, for messages."""
        frames = f"num_frames={self.num_frames}"
        if self.num_clips == 1:
            return frames
        return f"{frames} with num_clips={self.num_clips} ({self.total_frames()} frames)"

    def num_gradient_clips(self) -> int:
        """Return the number of clips that carry gradient."""
        return self.truncation_clips or self.num_clips

    def guided_steps(self) -> list[int]:
        """Return the denoising steps inside ``guidance_interval``."""
        (low, high), num_steps = self.guidance_interval, self.num_inference_steps
        return [step for step in range(num_steps) if low <= step / num_steps < high]
