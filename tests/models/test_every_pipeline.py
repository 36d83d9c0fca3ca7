"""Every video pipeline of the installed diffusers: compared with itself, or left out for a reason."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import vader_ray
from tests.helpers.families import CASES, Case, save, save_images
from tests.helpers.family_runs import (
    PROMPTS,
    SEEDS,
    STEPS,
    decode_all,
    encode_prompts,
    freeze,
    load_case,
    one_graph,
    own_call,
    parts_of,
    reseed,
)
from tests.helpers.nonlinear_rewards import ClipReward
from tests.helpers.paths import REPOSITORY
from tests.helpers.pipeline_cases import PIPELINES
from vader_ray import models
from vader_ray.alignment import decoding
from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.errors import UserError
from vader_ray.types import TruncationPlan

LEFT_OUT = {
    "a video, a control or an edited image is an input": """
        AnimateDiffControlNetPipeline AnimateDiffSparseControlNetPipeline AnimateDiffVideoToVideoPipeline
        AnimateDiffVideoToVideoControlNetPipeline ChronoEditPipeline CogVideoXFunControlPipeline
        CogVideoXVideoToVideoPipeline ConsisIDPipeline Cosmos2_5_TransferPipeline EasyAnimateControlPipeline
        EasyAnimateInpaintPipeline LTXConditionPipeline LTX2ConditionPipeline LTX2HDRPipeline
        LTX2InContextPipeline LucyEditPipeline SanaWMPipeline SkyReelsV2DiffusionForcingVideoToVideoPipeline
        VideoToVideoSDPipeline WanAnimatePipeline WanVideoToVideoPipeline""",
    "parts of a video are denoised one after another": """
        AnyFlowFARPipeline HeliosPipeline HeliosPyramidPipeline HunyuanVideoFramepackPipeline
        LTXI2VLongMultiPromptPipeline""",
    "every latent frame has a scheduler of its own, and frames are at different denoising steps": """
        SkyReelsV2DiffusionForcingPipeline SkyReelsV2DiffusionForcingImageToVideoPipeline""",
    "its loop calls one scheduler twice in a denoising step": """
        CosmosTextToWorldPipeline CosmosVideoToWorldPipeline""",
    "it is one of several passes that make a video": "LTX2DFRPipeline",
    "it refines, enlarges or decodes a given video": """
        Kandinsky6SRPipeline LTXLatentUpsamplePipeline LTX2DFRTemporalRefinePipeline
        LTX2LatentUpsamplePipeline LTX2VideoDiffusionDecodePipeline""",
    "a guardrail changes its videos to 8 bits in every call, so no graph can be compared": """
        Cosmos2VideoToWorldPipeline""",
    "its decoder has tiles of fixed size, which a test cannot decode": "AllegroPipeline",
    "diffusers deprecates it": "I2VGenXLPipeline PIAPipeline AnimateDiffPAGPipeline",
}
"""Why a pipeline is not supported → the names of its class."""
OWN = {"OpenSoraPipeline", "VideoCrafterPipeline"}
"""Pipelines of this package, which diffusers does not have; each has a file of tests."""
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
"""Kandinsky's norms get float32 in a bfloat16 denoiser."""
QUICK = ("skyreels_v2", "animatediff_sdxl", "ltx_i2v")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PIPELINES]


def _video_pipelines() -> set[str]:
    """Names of diffusers' pipeline classes whose output is frames."""
    folder, found = Path(diffusers.__file__).parent / "pipelines", set[str]()
    for path in folder.rglob("pipeline_*.py"):
        text = path.read_text(encoding="utf-8")
        if re.search(r"Output\(\s*frames=", text):
            found |= set(re.findall(r"^class (\w+Pipeline)\(", text, re.MULTILINE))
    return found


def test_every_video_pipeline_of_diffusers_is_supported_or_has_a_reason() -> None:
    left_out = [name for names in LEFT_OUT.values() for name in names.split()]
    supported = set(models.pipelines()) - OWN
    assert sorted([*supported, *left_out]) == sorted(_video_pipelines())
    assert len(supported) >= 25


def test_the_documentation_lists_them_all() -> None:
    page = (REPOSITORY / "docs/models.md").read_text(encoding="utf-8")
    for name, family in models.pipelines().items():
        assert re.search(rf"^\| .*`{name}`.* \| `{family}` \|", page, re.MULTILINE), name
    for reason, names in LEFT_OUT.items():
        for name in names.split():
            assert re.search(rf"^\| .*{re.escape(reason)}.* \|.*`{name}`", page, re.MULTILINE), name


def test_every_supported_pipeline_has_a_case() -> None:
    built = {type(case.build()).__name__ for case in (CASES | PIPELINES).values()}
    assert built == set(models.pipelines()) - {*OWN, "TextToVideoSDPipeline"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where each case's pipeline lies; made at its first use."""
    return cache(lambda name: save(PIPELINES[name], tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_images(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("name", NAMES)
def test_video_and_gradient_are_those_of_the_pipelines_own_loop(
    folders: Any, images: list[Path], name: str
) -> None:
    """The video bit for bit, also without its text encoders and with a pause before the gradient steps; the
    gradient of K = 1, 2 and N."""
    case = PIPELINES[name]
    model = load_case(case, folders(name))
    conditioning, plan = encode_prompts(model, images if case.images else None), TruncationPlan(STEPS, (1, 2))
    latents = model.sample(conditioning, SEEDS)
    theirs = [own_call(case, model, images, part, type(model.pipe).__call__) for part in parts_of(model)]
    with torch.no_grad():
        ours = [decode_all(model, latents[part]) for part in parts_of(model)]
    assert torch.equal(torch.cat(ours), torch.cat(theirs))
    assert theirs[0].shape[1] == case.sampling["num_frames"]
    assert theirs[0].std() > 0.01
    model.free_text_encoders()  # as a run does, after it has encoded its prompts
    state = model.sample_prefix(conditioning, plan, SEEDS)
    assert torch.equal(latents, model.sample_with_grad(state, conditioning, plan))
    _check_gradients(load_case(case, folders(name), None, case.precision), case, images)


def _check_gradients(model: Any, case: Case, images: list[Path]) -> None:
    for graded in ((2,), (1, 2), (0, 1, 2)):
        found, expected = _gradient(model, case, images, graded), one_graph(case, model, images, graded)
        assert expected.norm() > 0
        assert (found - expected).norm() < case.tolerance * expected.norm(), f"K={len(graded)}"


def _gradient(model: Any, case: Case, images: list[Path], graded: tuple[int, ...]) -> Tensor:
    for parameter in model.adapter_parameters():
        parameter.grad = None
    frames = [[tuple(range(case.sampling["num_frames"]))]]
    rollout = Rollout(
        PROMPTS[:1], encode_prompts(model, images if case.images else None)[0:1], SEEDS[:1], frames
    )
    term, plan = RewardTerm("clip", ClipReward()), TruncationPlan(STEPS, graded)
    accumulate_gradient(model, [term], rollout, plan, Batching(), scale=1.0)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.adapter_parameters()]
    return torch.cat([grad.flatten() for grad in grads]).double()


@pytest.mark.parametrize(
    "name", ["ltx_i2v", "easyanimate", "skyreels_v1", pytest.param("ltx2", marks=pytest.mark.slow)]
)
def test_gradient_is_the_difference_quotient_of_the_pipelines_own_videos(
    folders: Any, images: list[Path], name: str
) -> None:
    """One weight of the adapter in float64; nothing of this project computes the two videos."""
    case = PIPELINES[name]
    model = load_case(case, folders(name), None, "float64")
    gradient = _gradient(model, case, images, (0, 1, 2))
    place, size = int(gradient.abs().argmax()), 1e-3
    weights = torch.nn.utils.parameters_to_vector(model.adapter_parameters()).detach()

    def objective(change: float) -> float:
        moved = weights.clone()
        moved[place] += change
        torch.nn.utils.vector_to_parameters(moved, model.adapter_parameters())
        frames = own_call(case, model, images, slice(0, 1), type(model.pipe).__call__)
        return float(-ClipReward()(frames, PROMPTS[:1]).sum())

    with torch.no_grad():
        quotient = (objective(size) - objective(-size)) / (2 * size)
    assert quotient == pytest.approx(float(gradient[place]), rel=1e-3)


@pytest.mark.slow
def test_the_guardrail_of_cosmos_sees_prompts_and_finished_videos(folders: Any) -> None:
    model = load_case(PIPELINES["cosmos"], folders("cosmos"))
    with pytest.raises(UserError, match="guardrail of Cosmos refuses 'a weapon'"):
        model.encode(["a red circle", "a weapon"])
    latents = model.sample(model.encode(["a red circle"]), [0])
    whole, checked = decode_all(model, latents), decoding.decode_all(latents, model.decoder)
    assert not checked[..., 0, 0].any()
    assert (whole - checked)[..., 1:, :].abs().max() <= 1 / 255


@pytest.mark.slow
def test_kandinsky_adapts_the_first_frames_as_its_pipeline(folders: Any) -> None:
    """The pipeline's own function overwrites a tensor that the gradient needs; the family has another one."""
    pipe = load_case(PIPELINES["kandinsky5_i2v"], folders("kandinsky5_i2v")).pipe
    latents = torch.randn(1, 6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pipe.normalize_first_frame(latents), type(pipe).normalize_first_frame(pipe, latents))


@pytest.mark.slow
def test_a_prompt_without_padding_has_no_mask(folders: Any) -> None:
    """As in Kandinsky 6's own call; the conditioning has a mask for every prompt."""
    case, text = PIPELINES["kandinsky6"], "a red circle moving left " * 300
    model = load_case(case, folders("kandinsky6"))
    conditioning = model.encode([text])
    assert conditioning.tensors["prompt_attention_mask"].all()
    assert not conditioning.tensors["negative_prompt_attention_mask"].all()
    latents = model.sample(conditioning, SEEDS[:1])
    noise, generator = model.noise(SEEDS[:1]), torch.Generator()
    reseed([generator], SEEDS[:1], -2)
    arguments = case.sampling | {"negative_prompt": [""], "output_type": "pt"}
    theirs = model.pipe(text, latents=noise, generator=generator, **arguments).frames
    with torch.no_grad():
        assert torch.equal(decode_all(model, latents), theirs)


@pytest.mark.slow
def test_a_scheduler_of_several_predictions_has_no_coefficients(folders: Any) -> None:
    model = load_case(PIPELINES["kandinsky6_distilled"], folders("kandinsky6_distilled"))
    with pytest.raises(UserError, match="and PiflowScheduler takes 3; choose truncation=last"):
        model.sampling_schedule(model.encode(PROMPTS[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_sampling_stays_in_float32_around_a_bfloat16_denoiser(
    folders: Any, images: list[Path], name: str
) -> None:
    case = PIPELINES[name]
    model = load_case(case, folders(name), None, "bfloat16")
    conditioning, plan = encode_prompts(model, images if case.images else None), TruncationPlan(STEPS, (2,))
    state = model.sample_prefix(conditioning, plan, SEEDS)
    assert {output.dtype for output in state.schedulers[0].outputs} == {torch.float32}
    model.sample_with_grad(state, conditioning, plan).float().square().mean().backward()
    norms = [parameter.grad.norm() for parameter in model.adapter_parameters() if parameter.grad is not None]
    assert all(norm.isfinite() for norm in norms)
    assert sum(norms) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_a_saved_adapter_loads_as_the_family_says(
    folders: Any, images: list[Path], tmp_path: Path, name: str
) -> None:
    """In diffusers' own loader, or in `vader_ray.load_adapter`: the same video.

    A matrix product's last bits depend on where in memory the loaded weights are (1.7e-5 was seen).
    """
    case = PIPELINES[name]
    model = load_case(case, folders(name))
    one = parts_of(model)[0]
    ours = own_call(case, model, images, one, type(model.pipe).__call__)
    model.save_adapter(tmp_path)
    plain = freeze(diffusers.DiffusionPipeline.from_pretrained(folders(name)))
    plain.set_progress_bar_config(disable=True)
    model.pipe = plain
    before = own_call(case, model, images, one, type(plain).__call__)
    if model.stock_loader:
        plain.load_lora_weights(tmp_path)
    else:
        vader_ray.load_adapter(plain, tmp_path)
    found = own_call(case, model, images, one, type(plain).__call__)
    torch.testing.assert_close(found, ours, rtol=0, atol=5e-5)
    assert (before - ours).abs().max() > 1e-3
