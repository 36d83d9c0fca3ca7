"""Compare the staged reward gradient with the authors' loop and with one graph: seconds, memory, exactness.

    python benchmarks/engine.py                                         # tiny, CPU, under three minutes
    python benchmarks/engine.py --precision float64 --output engine.json
    python benchmarks/engine.py --size modelscope --precision bfloat16  # real sizes, random weights, one GPU
    python benchmarks/engine.py --size modelscope --device meta --depth 1   # memory at real sizes, no GPU

Every row has the same random weights, prompts, noise, frames and effective batch. Memory is what a step adds
to weights and optimizer state: the allocator's peak on a GPU, the peak of live tensors elsewhere
(`PeakMemoryTracker`). ``torch.autograd.graph.saved_tensors_hooks`` would count too little for the engine:
hooks around a checkpoint do not see what is saved inside it, neither in the forward pass nor when it is
recomputed. Meta tensors have no fused attention, so the memory of its softmax is included. The size ``tiny``
has the memory proportions of ``modelscope``: a decoded frame needs 0.05 and a scored frame 0.016 of the graph
of a denoising step. Seconds on a CPU cannot be compared with those on a GPU.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import torch
import typer
from diffusers import AutoencoderKL, DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel
from diffusers.utils import logging
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.frames import choose_frames
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.config import AdapterConfig, SamplingConfig
from vader_ray.models.core.conditioning import Conditioning
from vader_ray.models.core.decoders import DecoderOptions
from vader_ray.models.modelscope import ModelScopeModel
from vader_ray.paths import SHAPES_PREFIX, locate
from vader_ray.preflight.trackers import PeakMemoryTracker
from vader_ray.rewards import hps
from vader_ray.rewards.base import FrameReward, frozen
from vader_ray.types import Latents, TruncationPlan

PROMPTS = (
    "a red circle moving left",
    "a blue star moving up",
    "a green square",
    "a yellow box moving past a circle",
)
GUIDANCE_SCALE = 7.5
MIB = 2**20
PACKAGES = ("torch", "diffusers", "peft", "transformers", "open_clip_torch")


@dataclass(frozen=True, slots=True)
class Size:
    """Networks and videos of one comparison."""

    num_frames: int
    pixels: int
    num_inference_steps: int
    depths: tuple[int, ...]
    """Truncation depths K; the last is N."""
    unet: dict[str, Any]
    vae: dict[str, Any]
    reward: dict[str, Any] | str
    """An architecture of open_clip: its settings, or a name."""
    num_videos: int = 2
    """Effective batch of an optimizer step."""
    num_tokens: int = 16


def tiny() -> Size:
    """ModelScope's proportions at a size for a CPU: graph of the denoiser : decoder per frame : reward per
    frame."""
    return Size(
        num_frames=16,
        pixels=32,
        num_inference_steps=6,
        depths=(1, 2, 5, 6),
        unet={
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 8,
            "norm_num_groups": 8,
            "sample_size": 8,
        },
        vae={
            "block_out_channels": (24, 24, 24),
            "layers_per_block": 2,
            "norm_num_groups": 4,
            "latent_channels": 4,
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
        },
        reward={
            "embed_dim": 32,
            "vision_cfg": {"image_size": 32, "layers": 5, "width": 64, "head_width": 16, "patch_size": 4},
            "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 1},
        },
    )


def shapes() -> Size:
    """The embedded shapes networks, with random weights."""
    pipeline, reward = Path(locate(SHAPES_PREFIX + "text_to_video")), Path(locate(SHAPES_PREFIX + "hps"))
    architecture = json.loads((reward / hps.CONFIG).read_text(encoding="utf-8"))["model_cfg"]
    architecture["text_cfg"] |= {"vocab_size": 49408, "hf_tokenizer_name": None}
    return Size(
        num_frames=8,
        pixels=32,
        num_inference_steps=20,
        depths=(1, 2, 5, 10, 20),
        unet=UNet3DConditionModel.load_config(pipeline / "unet"),
        vae=AutoencoderKL.load_config(pipeline / "vae"),
        reward=architecture,
    )


def modelscope() -> Size:
    """``ali-vilab/text-to-video-ms-1.7b``, whose UNet is diffusers' default, and HPSv2's network."""
    return Size(
        num_frames=16,
        pixels=256,
        num_inference_steps=25,
        depths=(1, 2, 5, 10, 25),
        unet={},
        vae={
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "latent_channels": 4,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
        },
        reward="ViT-H-14",
        num_tokens=77,
    )


SIZES = {"tiny": tiny, "shapes": shapes, "modelscope": modelscope}


@dataclass(frozen=True, slots=True)
class Case:
    """One row: how a gradient is computed."""

    staged: bool
    """By the engine; else by one graph over denoiser, decoder and reward."""
    frames: Literal["random:1", "all"]
    depth: int
    recompute: bool = False

    @property
    def reference(self) -> Case:
        """The same gradient from one graph."""
        return Case(staged=False, frames=self.frames, depth=self.depth)

    def __str__(self) -> str:
        engine = (
            f"ours{', recompute' if self.recompute else ', no recompute'}" if self.staged else "one graph"
        )
        authors = " (authors' loop)" if self == AUTHORS else ""
        return f"{engine}, {'all frames' if self.frames == 'all' else '1 frame'}, K={self.depth}{authors}"


AUTHORS = Case(staged=False, frames="random:1", depth=1)


def cases(size: Size) -> list[Case]:
    """Every row, each after its reference."""
    rows = [AUTHORS, Case(staged=True, frames="random:1", depth=1, recompute=True)]
    for depth in size.depths:
        rows.append(Case(staged=False, frames="all", depth=depth))
        rows.extend(
            Case(staged=True, frames="all", depth=depth, recompute=recompute) for recompute in (True, False)
        )
    return rows


class RandomHps(hps.HPSReward):
    """HPS as the engine uses it, without its published weights."""

    def __init__(self, architecture: str, device: torch.device) -> None:
        FrameReward.__init__(self)
        clip, self.tokenize = hps.create(architecture, device=str(device))
        self.clip = frozen(clip)
        self.preprocessing = "published"
        self._text_features = {}


@dataclass(frozen=True, slots=True)
class Subject:
    """What every row shares."""

    size: Size
    model: ModelScopeModel
    term: RewardTerm
    conditioning: Conditioning
    optimizer: torch.optim.Optimizer

    @property
    def prompts(self) -> tuple[str, ...]:
        """One prompt per video."""
        return tuple(PROMPTS[video % len(PROMPTS)] for video in range(self.size.num_videos))

    def rollout(self, case: Case) -> Rollout:
        """The step's videos, with the frames that this row grades."""
        seeds = range(self.size.num_videos)
        seen = [
            choose_frames(case.frames, self.size.num_frames, torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        return Rollout(self.prompts, self.conditioning, list(seeds), [seen])


def build(size: Size, precision: str, device: torch.device, chunk_size: int = 1) -> Subject:
    """Networks with random weights; the decoder and the reward compute in float32 at least, as in the
    recipes."""
    torch.manual_seed(0)
    narrow = getattr(torch, precision)
    wide = torch.promote_types(narrow, torch.float32)
    with device:
        unet = _without_zeros(UNet3DConditionModel.from_config(size.unet)).to(narrow)
        vae = AutoencoderKL.from_config(size.vae).to(wide)
    scheduler = (_TimestepsOnCpu if device.type == "meta" else DDIMScheduler)(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipe = TextToVideoSDPipeline(vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler)
    sampling = SamplingConfig(
        num_frames=size.num_frames,
        height=size.pixels,
        width=size.pixels,
        num_inference_steps=size.num_inference_steps,
        guidance_scale=GUIDANCE_SCALE,
    )
    model = ModelScopeModel(pipe, sampling, DecoderOptions(chunk_size))
    model.add_adapter(AdapterConfig(), seed=0)
    for parameter in model.adapter_parameters():  # a fresh adapter has half of its gradients zero
        nn.init.normal_(parameter, std=0.02)
    embeds = torch.randn(2, size.num_videos, size.num_tokens, unet.config.cross_attention_dim).to(
        device, narrow
    )
    conditioning = Conditioning({"negative_prompt_embeds": embeds[0], "prompt_embeds": embeds[1]})
    optimizer = torch.optim.AdamW(model.adapter_parameters(), lr=1e-4)
    return Subject(
        size, model, RewardTerm("hps", _reward(size.reward, device).to(wide)), conditioning, optimizer
    )


class _TimestepsOnCpu(DDIMScheduler):
    """Its timesteps index a table, which meta tensors cannot."""

    def set_timesteps(self, num_inference_steps: int, device: object = None) -> None:
        super().set_timesteps(num_inference_steps)


def _without_zeros(network: nn.Module) -> nn.Module:
    """The network with random values in the layers that start at zero and would hide whatever comes before
    them."""
    for parameter in network.parameters():
        if parameter.device.type != "meta" and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network


def _reward(architecture: dict[str, Any] | str, device: torch.device) -> RandomHps:
    if isinstance(architecture, str):
        return RandomHps(architecture, device)
    with tempfile.TemporaryDirectory() as folder:
        preprocessing = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
        settings = {"model_cfg": architecture, "preprocess_cfg": preprocessing}
        (Path(folder) / hps.CONFIG).write_text(json.dumps(settings), encoding="utf-8")
        return RandomHps(folder, device)


def add_gradient(subject: Subject, case: Case) -> None:
    """Add one step's gradient of minus the mean reward to the adapter's gradients."""
    if not case.staged:
        return _add_monolithic_gradient(subject, case)
    steps = subject.size.num_inference_steps
    plan = TruncationPlan(steps, tuple(range(steps - case.depth, steps)), recompute=case.recompute)
    rollout = subject.rollout(case)
    batching = Batching(prefix=len(rollout), micro=1, chunk=1)
    accumulate_gradient(subject.model, [subject.term], rollout, plan, batching, scale=1 / len(rollout))


def _add_monolithic_gradient(subject: Subject, case: Case) -> None:
    """The authors' loop, written plainly: video by video, K steps, decoder and reward in one graph."""
    vae, rollout = subject.model.pipe.vae, subject.rollout(case)
    for video in range(len(rollout)):
        part = rollout.part(video, video + 1)
        latents = _sample_with_graph(subject.model, part, case.depth)
        images = latents[:, :, list(part.frame_indices[0][0])].transpose(1, 2).flatten(0, 1)
        decoded = vae.decode(images.to(vae.dtype) / vae.config.scaling_factor).sample
        frames = (decoded / 2 + 0.5).clamp(0, 1)[None]
        (-subject.term.reward(frames, part.prompts).sum() / len(rollout)).backward()


def _sample_with_graph(model: ModelScopeModel, rollout: Rollout, depth: int) -> Latents:
    unet, scheduler = model.pipe.unet, model.pipe.scheduler
    embeds = torch.cat(
        [rollout.conditioning.tensors[name] for name in ("negative_prompt_embeds", "prompt_embeds")]
    )
    scheduler.set_timesteps(model.sampling.num_inference_steps, model.pipe.device)
    latents = model.noise(rollout.seeds)
    for index, timestep in enumerate(scheduler.timesteps):
        with torch.set_grad_enabled(index >= len(scheduler.timesteps) - depth):
            noise = unet(torch.cat([latents] * 2).to(unet.dtype), timestep, embeds).sample.to(latents.dtype)
            unconditional, conditional = noise.chunk(2)
            guided = unconditional + GUIDANCE_SCALE * (conditional - unconditional)
            latents = scheduler.step(guided, timestep, latents).prev_sample
    return latents


class CudaAllocator:
    """The same two numbers from the allocator of a GPU."""

    def __enter__(self) -> CudaAllocator:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *error: object) -> None:
        torch.cuda.synchronize()

    @property
    def now(self) -> int:
        """Bytes that were allocated since and are in use."""
        return torch.cuda.memory_allocated() - self._before

    @property
    def peak(self) -> int:
        """The most of them."""
        return torch.cuda.max_memory_allocated() - self._before


def memory_meter(device: torch.device) -> PeakMemoryTracker | CudaAllocator:
    """What counts this device's memory."""
    return CudaAllocator() if device.type == "cuda" else PeakMemoryTracker()


def proportions(subject: Subject, device: torch.device) -> dict[str, float]:
    """MiB of the three graphs of one video: a denoising step (both guidance branches), one decoded frame,
    one scored frame."""
    model, vae = subject.model, subject.model.pipe.vae
    latents = model.noise([0])
    embeds = torch.cat([tensor[:1] for tensor in subject.conditioning.tensors.values()])
    noisy = torch.cat([latents] * 2).to(model.denoiser.dtype)
    image = latents[:, :, 0].to(vae.dtype).requires_grad_()
    frame = torch.rand(
        1, 1, 3, subject.size.pixels, subject.size.pixels, device=device, dtype=vae.dtype
    ).requires_grad_()
    graphs = {
        "denoising_step": lambda: model.denoiser(noisy, 1, embeds).sample,
        "decoder_per_frame": lambda: vae.decode(image).sample,
        "reward_per_frame": lambda: subject.term.reward(frame, PROMPTS[:1]),
    }
    return {name: _held_bytes(device, make) / MIB for name, make in graphs.items()}


def _held_bytes(device: torch.device, make: Callable[[], Tensor]) -> int:
    make()  # fills the caches that a graph refers to
    with memory_meter(device) as meter:
        result = make()
        assert result.requires_grad
        return meter.now


@dataclass(frozen=True, slots=True)
class Row:
    """What one case took."""

    case: Case
    peak_mib: float | None
    """Beyond weights and optimizer state; None where the device's memory did not suffice."""
    relative_error: float | None = None
    """Of the adapter's gradient, against one graph at the same noise, prompts and frames; None where there
    is none."""
    step_seconds: float | None = None
    graded_frames_per_second: float | None = None
    peak_rss_mib: float | None = None


def compare(
    subject: Subject, device: torch.device, *, repeats: int, depths: Sequence[int] = (), rss: bool = False
) -> list[Row]:
    """A row per case: exactness and memory first, then ``repeats`` steps of each in turn, so that all share
    the weather."""
    chosen = [case for case in cases(subject.size) if not depths or case.depth in depths]
    resident = {case: _peak_rss(subject, case) / MIB for case in chosen} if rss else {}
    for case in chosen[:2] if device.type != "meta" else ():
        add_gradient(subject, case)  # fills the caches of rewards and libraries
    results = {case: _gradient_and_peak(subject, case, device) for case in chosen}
    fitting = [case for case, result in results.items() if result is not None]
    seconds = _step_seconds(subject, fitting, repeats, device) if device.type != "meta" else {}
    return [_row(subject, case, results, seconds.get(case), resident.get(case)) for case in chosen]


Result = tuple[Tensor, int]


def _gradient_and_peak(subject: Subject, case: Case, device: torch.device) -> Result | None:
    """The adapter's gradient as one vector, and the bytes that it took; None when it ran out of a GPU's
    memory."""
    subject.optimizer.zero_grad()
    try:
        with memory_meter(device) as meter:
            add_gradient(subject, case)
    except torch.OutOfMemoryError:
        return None
    gradients = [
        parameter.grad.flatten()
        for parameter in subject.model.adapter_parameters()
        if parameter.grad is not None
    ]
    gradient = torch.cat(gradients)
    subject.optimizer.zero_grad()
    return gradient.cpu() if device.type == "cuda" else gradient, meter.peak


def _step_seconds(
    subject: Subject, chosen: Sequence[Case], repeats: int, device: torch.device
) -> dict[Case, float]:
    """The median seconds of an optimizer step; without a GPU those of the processor, which busy neighbours
    do not change."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds: dict[Case, list[float]] = {case: [] for case in chosen}
    for _ in range(repeats):
        for case in chosen:
            start = clock()
            subject.optimizer.zero_grad()
            add_gradient(subject, case)
            subject.optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[case].append(clock() - start)
    return {case: statistics.median(values) for case, values in seconds.items()}


def _peak_rss(subject: Subject, case: Case) -> int:
    """Bytes of resident memory that one step adds, in a fork of this process so that no row inherits
    another's heap.

    Autograd does not work in a fork of a process that has used it, so this comes before any backward pass.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_peak_rss, args=(subject, case, sender))
    child.start()
    sender.close()
    peak: int = receiver.recv()
    child.join()
    return peak


def _send_peak_rss(subject: Subject, case: Case, sender: Connection) -> None:
    before = psutil.Process().memory_info().rss
    add_gradient(subject, case)
    sender.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def _row(
    subject: Subject,
    case: Case,
    results: dict[Case, Result | None],
    seconds: float | None,
    resident: float | None,
) -> Row:
    result, reference = results[case], results[case.reference]
    if result is None:
        return Row(case, None)
    error = None
    if case.staged and reference is not None and not result[0].is_meta:
        error = float((result[0] - reference[0]).norm() / reference[0].norm())
    graded = subject.size.num_videos * (subject.size.num_frames if case.frames == "all" else 1)
    return Row(case, result[1] / MIB, error, seconds, graded / seconds if seconds else None, resident)


def ratios(rows: Sequence[Row], size: Size) -> dict[str, float]:
    """What a reader wants to know, each as one row over another; left out where either is missing."""
    by_case = {row.case: row for row in rows}
    last = size.depths[-1]
    one, every = Case(True, "random:1", 1, recompute=True), Case(True, "all", 1, recompute=True)
    questions = {
        "memory: ours, all frames / one frame": ("peak_mib", every, one),
        "memory: ours, all frames / authors' loop": ("peak_mib", every, AUTHORS),
        "memory: one graph, all frames / ours": ("peak_mib", every.reference, every),
        f"memory: ours with recompute, K={last} / K=1": (
            "peak_mib",
            Case(True, "all", last, recompute=True),
            every,
        ),
        f"memory: ours without recompute, K={last} / K=1": (
            "peak_mib",
            Case(True, "all", last),
            Case(True, "all", 1),
        ),
        f"memory: one graph, K={last} / K=1": ("peak_mib", Case(False, "all", last), every.reference),
        "seconds: ours, one frame / authors' loop": ("step_seconds", one, AUTHORS),
        "seconds: ours, all frames / authors' loop": ("step_seconds", every, AUTHORS),
        "seconds: ours, all frames / one graph": ("step_seconds", every, every.reference),
        "seconds: recompute / no recompute, K=1": ("step_seconds", every, Case(True, "all", 1)),
        "graded frames per second: ours, all frames / authors' loop": (
            "graded_frames_per_second",
            every,
            AUTHORS,
        ),
    }
    found = {
        name: [getattr(by_case.get(case), column, None) for case in pair]
        for name, (column, *pair) in questions.items()
    }
    return {name: above / below for name, (above, below) in found.items() if above and below}


def show(rows: Sequence[Row], summary: dict[str, float], graphs: dict[str, float], title: str) -> None:
    """Print the table, the ratios and what the memory is made of."""
    table = Table(title=title)
    for column in ("case", "s / step", "graded frames / s", "peak MiB", "peak RSS MiB", "gradient error"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        peak = "out of memory" if row.peak_mib is None else f"{row.peak_mib:.1f}"
        numbers = (row.step_seconds, row.graded_frames_per_second, row.peak_rss_mib)
        seconds, frames, resident = ("–" if number is None else f"{number:.3g}" for number in numbers)
        table.add_row(
            str(row.case),
            seconds,
            frames,
            peak,
            resident,
            "–" if row.relative_error is None else f"{row.relative_error:.1e}",
        )
    console = Console(width=120)
    console.print(table)
    for name, value in summary.items():
        console.print(f"{value:8.3f}  {name}", highlight=False)
    held = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in graphs.items())
    console.print(f"graphs of one video, MiB: {held}", highlight=False)


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware and versions."""
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "processor": platform.processor() or platform.machine(),
        "num_cores": psutil.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def main(
    size: Annotated[
        Literal["tiny", "shapes", "modelscope"], typer.Option(help="networks and videos")
    ] = "tiny",
    precision: Annotated[
        Literal["float32", "float64", "bfloat16"], typer.Option(help="of the denoiser")
    ] = "float32",
    repeats: Annotated[int, typer.Option(min=1, help="timed steps per row")] = 3,
    depth: Annotated[
        list[int] | None, typer.Option(help="only these truncation depths; may be given several times")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or meta (memory only); by default a GPU when there is one")
    ] = None,
    resident: Annotated[
        bool, typer.Option(help="also resident memory, in forks; set MALLOC_MMAP_THRESHOLD_=65536")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="JSON file of all numbers")] = None,
) -> None:
    """Compare the engine with the authors' loop and with one graph."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    subject = build(SIZES[size](), precision, place)
    rows = compare(subject, place, repeats=repeats, depths=depth or (), rss=resident and place.type == "cpu")
    summary, graphs = ratios(rows, subject.size), proportions(subject, place)
    show(
        rows, summary, graphs, f"{size}, {precision}, {place.type}: {subject.size.num_videos} videos per step"
    )
    if output is not None:
        settings = {
            "size": size,
            "precision": precision,
            "repeats": repeats,
            "guidance_scale": GUIDANCE_SCALE,
        }
        document = (
            settings
            | asdict(subject.size)
            | {"machine": machine(place), "graphs_mib": graphs, "ratios": summary}
        )
        output.write_text(
            json.dumps(document | {"rows": [{"name": str(row.case)} | asdict(row) for row in rows]}, indent=2)
            + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    typer.run(main)
