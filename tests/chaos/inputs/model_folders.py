"""Damages of a diffusers folder (file → content, None deletes it), with a piece of the sentence."""

from __future__ import annotations

INDEX = "model_index.json"
NO_PIPELINE = "is no pipeline in diffusers' format: "
NO_FAMILY = "cannot be loaded as this family's pipeline: "

REFUSED: list[tuple[str, bytes | None, str]] = [
    (INDEX, None, f"{NO_PIPELINE}it has no model_index.json; download the weights again"),
    (INDEX, b"", f"{NO_PIPELINE}it is no JSON (Expecting value"),
    (INDEX, b"a star", f"{NO_PIPELINE}it is no JSON (Expecting value"),
    (INDEX, b"\xff\xfe", f"{NO_PIPELINE}it is no JSON ('utf-8' codec can't decode"),
    (INDEX, b"[" * 100_000, f"{NO_PIPELINE}it is no JSON ("),
    (INDEX, b"[1]", f"{NO_PIPELINE}it is a list, not an object"),
    (INDEX, b"null", f"{NO_PIPELINE}it is a NoneType, not an object"),
    (INDEX, b'"x"', f"{NO_PIPELINE}it is a str, not an object"),
    (INDEX, b"{}", f"{NO_PIPELINE}its _class_name, the class of the pipeline, is not given as text"),
    (INDEX, b'{"_class_name": null}', f"{NO_PIPELINE}its _class_name"),
    (INDEX, b'{"_class_name": 3}', f"{NO_PIPELINE}its _class_name"),
    (INDEX, b'{"_class_name": ["a"]}', f"{NO_PIPELINE}its _class_name"),
    (INDEX, b'{"_class_name": "NoSuchPipeline"}', NO_FAMILY),
    (INDEX, b'{"_class_name": "TextToVideoSDPipeline"}', NO_FAMILY),
    (
        INDEX,
        b'{"_class_name": "T", "vae": ["diffusers"]}',
        f"{NO_PIPELINE}its vae is ['diffusers'], not [library",
    ),
    (INDEX, b'{"_class_name": "T", "vae": {}}', f"{NO_PIPELINE}its vae is {{}}, not [library, class]"),
    (INDEX, b'{"_class_name": "T", "vae": [1, 2]}', f"{NO_PIPELINE}its vae is [1, 2], not [library, class]"),
    (
        INDEX,
        b'{"_class_name": "T", "extra": ["diffusers", "X"]}',
        f"{NO_PIPELINE}its component extra is missing",
    ),
    (INDEX, b" " * 2**21, f"{NO_PIPELINE}it has more than 1048576 bytes"),
    ("vae", None, f"{NO_PIPELINE}its component vae is missing"),
    ("unet", None, f"{NO_PIPELINE}its component unet is missing"),
    ("scheduler", None, f"{NO_PIPELINE}its component scheduler is missing"),
    ("vae/config.json", None, NO_FAMILY),
    ("vae/config.json", b"{", f"{NO_PIPELINE}it is no JSON ("),
    ("vae/config.json", b"[]", f"{NO_PIPELINE}it is a list, not an object"),
    ("unet/config.json", b"null", f"{NO_PIPELINE}it is a NoneType, not an object"),
    ("unet/config.json", b'{"_class_name": "UNet3DConditionModel", "block_out_channels": "x"}', NO_FAMILY),
    ("vae/diffusion_pytorch_model.safetensors", None, NO_FAMILY),
    ("vae/diffusion_pytorch_model.safetensors", b"", NO_FAMILY),
    ("vae/diffusion_pytorch_model.safetensors", b"\xff" * 100, NO_FAMILY),
    ("scheduler/scheduler_config.json", b"{", f"{NO_PIPELINE}it is no JSON ("),
    ("tokenizer/tokenizer.json", b"{", NO_FAMILY),
    ("text_encoder/config.json", b"[]", f"{NO_PIPELINE}it is a list, not an object"),
]
