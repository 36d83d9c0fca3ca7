"""Model cards without a run; those of runs are in test_push.py."""

from __future__ import annotations

import yaml

from vader_ray.orchestration.publishing.model_card import model_card


def test_a_card_without_a_run_names_base_model_and_licence_and_no_results() -> None:
    card = model_card("Name", "me/name", "owner/base", None, is_for_diffusers=True, networks=[""])
    about = yaml.safe_load(card.split("---")[1])
    assert about["base_model"] == "owner/base"
    assert (about["license"], about["license_link"]) == ("other", "https://huggingface.co/owner/base")
    assert 'pipe.load_lora_weights("me/name")' in card
    assert "were not measured" in card
    assert "| reward |" not in card


def test_a_card_of_packaged_weights_loads_them_from_the_package() -> None:
    card = model_card(
        "Name", "me/name", "shapes:text_to_video", None, is_for_diffusers=False, networks=[""], licence="mit"
    )
    about = yaml.safe_load(card.split("---")[1])
    assert "base_model" not in about, "it is no repository of the hub"
    assert about["license"] == "mit"
    code = card.split("```")[1].removeprefix("python\n")
    compile(code, "card", "exec")
    assert 'DiffusionPipeline.from_pretrained(vr.packaged_weights("text_to_video"))' in code
    assert 'PeftModel.from_pretrained(pipe.unet, "me/name")' in code
