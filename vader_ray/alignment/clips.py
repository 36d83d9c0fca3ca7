"""Long videos as chains of clips: the last decoded frame of a clip is the image of the next.

A chain is a composition: x_{k+1} is the last frame of clip(x_k, noise_k, θ). The rewards see the frames of
all clips; the frame between two clips is in the video once, as the last one of the earlier clip. In memory
are the noise, the image and the latents with which each clip enters its gradient steps, the frames that
rewards score, and the graph of one clip. The backward pass begins with the last clip. It computes each
earlier clip again, with its graph, and adds the gradient of a clip's image to that of the last frame of the
clip before. So the gradient is that of one graph over the whole chain in which the gradient steps of each
clip are those of the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from vader_ray.alignment.decoding import decode, decode_all
from vader_ray.alignment.precision import matmul_precision
from vader_ray.alignment.reward_gradient import ObjectiveFuture, RewardOutput, RewardTerm, submit_rewards
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.config import MatmulPrecision
from vader_ray.errors import UserError
from vader_ray.types import (
    ClipsModel,
    Frames,
    Images,
    Latents,
    SamplingModel,
    Sliceable,
    TruncationPlan,
    VideoDecoder,
)


def check_model(model: SamplingModel) -> None:
    """Refuse a model that cannot continue a video from its last frame.

    Raises:
        UserError: the message names the remedy.
    """
    if not isinstance(model, ClipsModel):
        raise UserError(
            "sampling.num_clips needs a model that continues a video from its last frame, which "
            f"{type(model).__name__} does not (vader_ray.types.ClipsModel); set it to 1"
        )
    model.check_clips()


def clip_seeds(seeds: Sequence[int], clip: int) -> list[int]:
    """Return the seed of each video's noise in a clip: its own in the first, others are derived from it.

    Source: numpy's SeedSequence of the video's seed, the clip, and a number without which
    `vader_ray.alignment.endings.ending_seed` would return the same seeds.
    """
    if clip == 0:
        return list(seeds)
    states = [np.random.SeedSequence([seed, clip, 1]).generate_state(1, np.uint64)[0] for seed in seeds]
    return [int(state >> np.uint64(1)) for state in states]


def positions_in_clip(wanted: Sequence[int], clip: int, clip_frames: int) -> list[int]:
    """Return which frames of a clip are among some frames of the video, by their index in the clip.

    Args:
        wanted: ascending indices in the video.
        clip: index of the clip.
        clip_frames: number of frames of a clip.
    """
    start = clip * (clip_frames - 1)
    first = start + 1 if clip else start  # that of a later clip is the last one of the clip before
    return [frame - start for frame in wanted if first <= frame < start + clip_frames]


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip of some videos, stopped before its first gradient step."""

    state: Sliceable
    """The stopped sampling."""
    image: Images | None = None
    """Last frame of the clip before; None in the first clip."""
    positions: Sequence[int] = ()
    """Indices in the clip of the frames that rewards score, and, in all clips but the last, of its end."""
    frames: Frames | None = None
    """These frames without their graph; None in the last clip."""

    def __getitem__(self, part: slice) -> Clip:
        return replace(
            self,
            state=self.state[part],
            image=None if self.image is None else self.image[part],
            frames=None if self.frames is None else self.frames[part],
        )


def sample_clips(
    model: SamplingModel, videos: Rollout, plan: TruncationPlan, batching: Batching
) -> list[Clip]:
    """Sample the clips of some videos without gradient, the last one up to its first gradient step."""
    clips, image = list[Clip](), None
    for index in range(plan.num_clips):
        conditioning = _with_image(model, videos.conditioning, image)
        clip = Clip(model.sample_prefix(conditioning, plan, clip_seeds(videos.seeds, index)), image)
        if index < plan.num_clips - 1:
            clip = _finish(model, clip, conditioning, plan, batching, index, videos.wanted_frames())
            assert clip.frames is not None
            image = clip.frames[:, -1]
        elif index:
            clip_frames = clips[0].positions[-1] + 1
            wanted = positions_in_clip(videos.wanted_frames(), index, clip_frames)
            clip = replace(clip, positions=wanted or [1])
        clips.append(clip)
    return clips


def _finish(
    model: SamplingModel,
    clip: Clip,
    conditioning: Sliceable,
    plan: TruncationPlan,
    batching: Batching,
    index: int,
    wanted: Sequence[int],
) -> Clip:
    """Return a clip with its frames, for which its gradient steps are taken without gradient."""
    positions, parts = list[int](), list[Frames]()
    for start in range(0, len(conditioning), batching.micro):
        rows = slice(start, start + batching.micro)
        with torch.no_grad():
            latents = model.sample_with_grad(clip.state[rows], conditioning[rows], plan)
            end = model.decoder.num_frames(latents) - 1
            positions = sorted({*positions_in_clip(wanted, index, end + 1), end})
            parts.append(_decode(latents, model.decoder, positions, batching.matmul_precision))
    return replace(clip, positions=positions, frames=torch.cat(parts))


def _with_image(model: SamplingModel, conditioning: Sliceable, image: Images | None) -> Sliceable:
    if image is None:
        return conditioning
    assert isinstance(model, ClipsModel)
    continued: Sliceable = model.with_images(conditioning, image)
    return continued


def _decode(
    latents: Latents, decoder: VideoDecoder, positions: Sequence[int], precision: MatmulPrecision
) -> Frames:
    """Decode some frames of a clip, and return no others."""
    with matmul_precision(precision):
        frames, indices = decode(latents, decoder, positions)
    return frames[:, [indices.index(position) for position in positions]]


@dataclass(frozen=True, slots=True)
class _ClipGraph:
    """Frames of a clip with their graph, in two parts."""

    frames: Frames
    leaf: Latents
    """Latents at which the graph of the decoder begins."""
    latents: Latents
    """The same values with the graph of image and gradient steps."""
    image: Images | None
    """First frames at which that graph begins; None in the first clip."""

    def backward(self, d_frames: Frames, precision: MatmulPrecision) -> None:
        """Add the gradients of the adapter and of the image."""
        with matmul_precision(precision):
            self.frames.backward(d_frames)
        assert self.leaf.grad is not None
        self.latents.backward(self.leaf.grad)


@dataclass(frozen=True, slots=True)
class Chain:
    """Sampled clips of some videos, from the first to the last."""

    model: SamplingModel
    videos: Rollout
    clips: Sequence[Clip]
    plan: TruncationPlan
    batching: Batching

    def accumulate(self, terms: Sequence[RewardTerm], scale: float) -> RewardOutput:
        """Add −scale · ∂(sum of the objective)/∂adapter to the adapter's gradients; return the scores.

        Raises:
            UserError: the pipeline has no gradient in its image.
        """
        last = self._compute(self.plan.num_clips - 1)
        with matmul_precision(self.batching.matmul_precision):
            output, d_frames = self._submit(last.frames.detach(), terms).result()
        self._backward(last, d_frames.mul_(-scale))
        return output

    def _compute(self, index: int) -> _ClipGraph:
        """Compute a clip with its graph, from its first gradient step on."""
        clip, image = self.clips[index], self.clips[index].image
        if image is not None:
            has_gradient = index > self.plan.num_clips - self.plan.num_gradient_clips
            image = image.detach().requires_grad_(has_gradient)
        conditioning = _with_image(self.model, self.videos.conditioning, image)
        latents = self.model.sample_with_grad(clip.state, conditioning, self.plan)
        leaf = latents.detach().requires_grad_()
        frames = _decode(leaf, self.model.decoder, clip.positions, self.batching.matmul_precision)
        return _ClipGraph(frames, leaf, latents, image)

    def _submit(self, last: Frames, terms: Sequence[RewardTerm]) -> ObjectiveFuture:
        """Send the frames of all clips to the rewards."""
        frames = [clip.frames for clip in self.clips if clip.frames is not None]
        distance = self.clips[0].positions[-1]
        indices = [
            index * distance + position
            for index, clip in enumerate(self.clips)
            for position in clip.positions
        ]
        return submit_rewards(
            torch.cat([*frames, last], dim=1),
            indices,
            self.videos.prompts,
            terms,
            self.videos.frame_indices,
            self.batching.chunk,
        )

    def _backward(self, last: _ClipGraph, d_frames: Frames) -> None:
        """Pass the gradient of all frames through the clips that carry gradient, the last one first."""
        gradients = d_frames.split([len(clip.positions) for clip in self.clips], dim=1)
        last.backward(gradients[-1], self.batching.matmul_precision)
        image, calls = last.image, self.model.denoiser_calls
        first = self.plan.num_clips - self.plan.num_gradient_clips
        for index in reversed(range(first, self.plan.num_clips - 1)):
            gradients[index][:, -1] += self._gradient(image).to(d_frames.dtype)
            graph = self._compute(index)
            graph.backward(gradients[index], self.batching.matmul_precision)
            image = graph.image
        self.model.denoiser_calls = calls  # recomputations are not counted

    def _gradient(self, image: Images | None) -> Images:
        assert image is not None
        if image.grad is None:
            raise UserError(
                f"sampling.num_clips: {type(self.model).__name__} has no gradient in the image from which it "
                "makes a video; set sampling.truncation_clips=1"
            )
        return image.grad


@torch.no_grad()
def sample_frames(
    model: SamplingModel,
    conditioning: Sliceable,
    seeds: Sequence[int],
    *,
    num_clips: int = 1,
    adapter_strengths: Sequence[float] | None = None,
    precision: MatmulPrecision = "tf32",
) -> Iterator[Frames]:
    """Sample videos together without gradient, and yield each with all its frames.

    The last clip of a video is decoded when it is requested.

    Args:
        model: the model.
        conditioning: of the videos, one each.
        seeds: seed of each video's noise.
        num_clips: clips of a video.
        adapter_strengths: factor of the adapter's update in each denoising step; None is 1.
        precision: of float32 products in the decoder on GPUs.
    """
    image, earlier = None, list[Frames]()
    for index in range(num_clips):
        continued = _with_image(model, conditioning, image)
        latents = model.sample(continued, clip_seeds(seeds, index), adapter_strengths)
        if index < num_clips - 1:
            with matmul_precision(precision):
                frames = torch.cat([decode_all(each, model.decoder) for each in latents.split(1)])
            earlier.append(frames[:, min(index, 1) :])
            image = frames[:, -1]
    for video, each in enumerate(latents.split(1)):
        with matmul_precision(precision):
            last = decode_all(each, model.decoder)
        yield torch.cat([*(frames[[video]] for frames in earlier), last[:, 1:]], dim=1) if earlier else last
