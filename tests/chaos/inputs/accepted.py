"""Overrides of a packaged recipe that are accepted, however unusual: refusals must not be too strict."""

from __future__ import annotations

ACCEPTED = r"""
seed=9223372036854775807
seed=0
seed=1e3
seed="7"
name=a
name=A.b-c_d9
name=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
description=""
description="café − 星 🌟 \t"
num_steps=1
num_steps=1000000000
videos_per_step=1
videos_per_step=1048576
algorithm={name: dpo}
algorithm.reference_penalty=0.1
model.weights=owner/name
model.weights=gpt2
model.weights=shapes:text_to_video
model.precision=bfloat16
model.temporal_decoder_frames=1
adapter.rank=1
adapter.rank=4096
adapter.alpha=1e-3
adapter.target_modules=[to_q]
adapter.target_modules=null
prompts.train=[a]
prompts.train=[a, a]
prompts.train=["a | b"]
prompts.train=["café − 星 🌟"]
prompts.train=["two\nlines"]
sampling.num_frames=100
sampling.height=2160 sampling.width=3840
sampling.num_inference_steps=1000
sampling.guidance_scale=1
sampling.negative_prompt=""
sampling.negative_prompt="blurry, ugly"
sampling.eta=1
sampling.scheduler=DDIMScheduler
sampling.scheduler=null
sampling.truncation=random sampling.truncation_depth=20
sampling.truncation=window sampling.truncation_options.start=19
sampling.truncation_depth=20
sampling.recompute=auto
sampling.recompute=earlier
sampling.prefix_cache=first_block:0.1
sampling.prefix_cache=deep_features:2
sampling.guidance_interval=[0.2, 0.8]
rewards.0.weight=-1
rewards.0.weight=0
rewards.0.target=10
rewards.0.hinge=-1e9
generation.adapter_strength=0
generation.adapter_strength=[[0.5, 2]]
generation.adapter_strength=[[0, 0], [1, 1]]
algorithm.gradient_clip_quantile=0.99
rewards.0.label="my reward"
rewards.0.frames=first:8
rewards.0.frames=frame:7
rewards.0.frames=random:8
rewards.0.frames=stride:1000
rewards.0.placement={actor: a}
rewards.0.placement={actor: a, num_gpus: 0.25, resources: {x: 1}}
rewards=[{reward: brightness}, {reward: brightness, label: second}]
eval_rewards=[] evaluation.select=null guard.metrics=[]
eval_metrics=[]
eval_metrics=[{metric: motion, label: mine}]
optimizer.learning_rate=1e-30
optimizer.betas=[0, 0]
optimizer.weight_decay=0
evaluation.every=1000000
evaluation.select=eval/objective
guard.action=none
guard.metrics=[eval/motion]
guard.bound=1e9
checkpoint.keep=1
tracking.uri=null
runtime.num_workers=4
runtime.num_workers=4 runtime.min_workers=1
runtime.micro_batch_size=auto
runtime.use_gpu=yes
runtime.wait_minutes=0.5
runtime.max_failures=0
expected_metrics={}
expected_metrics={eval/reward/hps: -1e9}
"""
