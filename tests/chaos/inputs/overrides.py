"""Overrides of a packaged recipe that are refused, with a piece of the sentence: what is wrong, and the remedy."""

from __future__ import annotations

REFUSED = r"""
name=3 => name: Input should be a valid string, not 3
name= => name: Input should be a valid string, not None
name=null => name: Input should be a valid string, not None
name=[a] => name: Input should be a valid string, not ['a']
name=a/b => name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', not 'a/b'
name=.. => name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', not '..'
name=.hidden => name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', not '.hidden'
name=-x => name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', not '-x'
name="a b" => name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', not 'a b'
name="a\0b" => name: the text has a NUL character or half of a UTF-16 pair; remove it
name="é" => name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', not 'é'
name=true => name: true is no value of this setting; give a number or a text
name={LONG} => name: String should have at most 200 characters, not
description=3 => description: Input should be a valid string, not 3
description=[a] => description: Input should be a valid string, not ['a']
description="a\0b" => description: the text has a NUL character or half of a UTF-16 pair; remove it
description="\ud800" => description: '"\\ud800"' is not a YAML value (while parsing a quoted scalar in line 1,
seed=-1 => seed: Input should be greater than or equal to 0, not -1
seed=1.5 => seed: Input should be a valid integer, got a number with a fractional part, not 1.5
seed=true => seed: true is no value of this setting; give a number or a text
seed=null => seed: Input should be a valid integer, not None
seed=x => seed: Input should be a valid integer, unable to parse string as an integer, not 'x'
seed=[] => seed: Input should be a valid integer, not []
seed=.nan => seed: Input should be a finite number, not nan
seed=9223372036854775808 => seed: Input should be less than 9223372036854775808, not 9223372036854775808
seed=18446744073709551616 => seed: Input should be less than 9223372036854775808, not 18446744073709551616
seed=99999999999999999999999999999 => seed: Input should be less than 9223372036854775808, not 99999999999999999999999999999
num_steps=0 => num_steps: Input should be greater than 0, not 0
num_steps=-1 => num_steps: Input should be greater than 0, not -1
num_steps=2.5 => num_steps: Input should be a valid integer, got a number with a fractional part, not 2.5
num_steps=many => num_steps: Input should be a valid integer, unable to parse string as an integer, not 'many'
num_steps=null => num_steps: Input should be a valid integer, not None
num_steps=true => num_steps: true is no value of this setting; give a number or a text
num_steps=.inf => num_steps: Input should be a finite number, not inf
num_steps=1000000000000 => num_steps: Input should be less than or equal to 1000000000, not 1000000000000
num_step=3 => num_step: there is no such setting; did you mean 'num_steps'? here are adapter, algorithm,
videos_per_step=0 => videos_per_step: Input should be greater than 0, not 0
videos_per_step=-4 => videos_per_step: Input should be greater than 0, not -4
videos_per_step=1000000000 => videos_per_step: Input should be less than or equal to 1048576, not 1000000000
videos_per_step=null => videos_per_step: Input should be a valid integer, not None
videos_per_step=3 runtime.num_workers=2 => recipe: videos_per_step=3 cannot be shared evenly by runtime.num_workers=2; choose a divisor
algorithm=null => algorithm: Input should be a valid dictionary or instance of AlgorithmConfig, not None
algorithm=3 => algorithm: Input should be a valid dictionary or instance of AlgorithmConfig, not 3
algorithm=vader => algorithm: Input should be a valid dictionary or instance of AlgorithmConfig, not 'vader'
algorithm.name=null => algorithm.name: Input should be a valid string, not None
algorithm.name=vadr => algorithm.name: there is no 'vadr'; did you mean 'vader'? give one of ddpo, dpo, vader, or
algorithm.name=dddpo => algorithm.name: there is no 'dddpo'; did you mean 'ddpo'? give one of ddpo, dpo, vader, or
algorithm.name=os.path => algorithm.name: posixpath must define one class whose name ends in Algorithm and defines
algorithm.name=no.such.module => algorithm.name: there is no module 'no.such.module' or 'no.such'; install it or put its
algorithm.nmae=vader => algorithm.nmae: there is no such setting; here are gradient_clip_quantile, reference_penalty
algorithm.reference_penalty=-1 => algorithm.reference_penalty: Input should be greater than or equal to 0, not -1
algorithm.reference_penalty=.nan => algorithm.reference_penalty: Input should be a finite number, not nan
algorithm={name: ddpo, clip_rnge: 3} => algorithm.clip_rnge: there is no such setting; did you mean 'clip_range'? here are
algorithm={name: ddpo, clip_range: -1} => algorithm.clip_range: Input should be greater than 0, not -1
algorithm={name: ddpo, num_updates: 0} => algorithm.num_updates: Input should be greater than 0, not 0
algorithm={name: ddpo} sampling.truncation_depth=2 => sampling.truncation_depth=2 has no effect on algorithm.name=ddpo; set it to 1, or name=vader
algorithm={name: ddpo} sampling.recompute=false => sampling.recompute=False has no effect on algorithm.name=ddpo; set it to True, or name=vader
algorithm={name: dpo, pairs: /nowhere.parquet} => algorithm.pairs: /nowhere.parquet is no file of pairs; give an existing .parquet or .jsonl
algorithm={name: dpo, num_draws: 0} => algorithm.num_draws: Input should be greater than 0, not 0
algorithm={name: dpo, beta: -3} => algorithm.beta: Input should be greater than 0, not -3
model=null => model: Input should be a valid dictionary or instance of ModelConfig, not None
model={} => model.weights: is required
model=modelscope => model: Input should be a valid dictionary or instance of ModelConfig, not 'modelscope'
model.family=null => model.family: Input should be a valid string, not None
model.family= => model.family: Input should be a valid string, not None
model.family=modelscop => model.family: there is no 'modelscop'; did you mean 'modelscope'? give one of animatediff,
model.family=wam => model.family: there is no 'wam'; did you mean 'wan'? give one of animatediff, animatediff_sdxl,
model.family=../wan => model.family: there is no '../wan'; did you mean 'wan'? give one of animatediff, animatediff_sdxl,
model.family=no.such => model.family: there is no module 'no.such' or 'no'; install it or put its folder on
model.family=3 => model.family: Input should be a valid string, not 3
model.familly=wan => model.familly: there is no such setting; did you mean 'family'? here are decoder_precision,
model.weights=null => model.weights: Input should be a valid string, not None
model.weights= => model.weights: Input should be a valid string, not None
model.weights=3 => model.weights: Input should be a valid string, not 3
model.weights=/no/where => model.weights: /no/where does not exist; give an existing path, a hub id (owner/name) or
model.weights=./nowhere => nowhere does not exist; give an existing path, a hub id (owner/name) or
model.weights=~nosuchuser/weights => model.weights: ~nosuchuser/weights begins with a user whose home folder is not known; give
model.weights=shapes:text_to_vide => model.weights: 'shapes:text_to_vide' names no packaged checkpoint; did you mean
model.weights=shapes: => model.weights: Input should be a valid string, not {'shapes': None}
model.weights="a\0b" => model.weights: the text has a NUL character or half of a UTF-16 pair; remove it
model.weights={LONG} => does not exist; give an existing path, a hub id (owner/name) or shapes:NAME
model.precision=float8 => model.precision: Input should be 'float32', 'bfloat16' or 'float64', not 'float8'
model.precision=half => model.precision: Input should be 'float32', 'bfloat16' or 'float64', not 'half'
model.precision=null => model.precision: Input should be 'float32', 'bfloat16' or 'float64', not None
model.decoder_precision=int8 => model.decoder_precision: Input should be 'float32', 'bfloat16' or 'float64', not 'int8'
model.quantization=int4 => model.quantization: Input should be 'int8', 'fp8' or 'nf4', not 'int4'
model.quantization=8 => model.quantization: Input should be 'int8', 'fp8' or 'nf4', not 8
model.quantization=int8 runtime.compile=blocks => cannot compile layers of model.quantization=int8; leave one
model.offload_decoder_cache=maybe => model.offload_decoder_cache: Input should be a valid boolean, unable to interpret input,
model.offload_decoder_cache=3 => model.offload_decoder_cache: Input should be a valid boolean, unable to interpret input,
model.temporal_decoder_frames=0 => model.temporal_decoder_frames: Input should be greater than 0, not 0
model.temporal_decoder_frames=x => model.temporal_decoder_frames: Input should be a valid integer, unable to parse string as
model.wieghts=a => model.wieghts: there is no such setting; did you mean 'weights'? here are
adapter=null => adapter: Input should be a valid dictionary or instance of AdapterConfig, not None
adapter=8 => adapter: Input should be a valid dictionary or instance of AdapterConfig, not 8
adapter.rank=0 => adapter.rank: Input should be greater than 0, not 0
adapter.rank=-8 => adapter.rank: Input should be greater than 0, not -8
adapter.rank=1.5 => adapter.rank: Input should be a valid integer, got a number with a fractional part, not 1.5
adapter.rank=true => adapter.rank: true is no value of this setting; give a number or a text
adapter.rank=1000000 => adapter.rank: Input should be less than or equal to 16384, not 1000000
adapter.rank=null => adapter.rank: Input should be a valid integer, not None
adapter.alpha=0 => adapter.alpha: Input should be greater than 0, not 0
adapter.alpha=-1 => adapter.alpha: Input should be greater than 0, not -1
adapter.alpha=.nan => adapter.alpha: Input should be a finite number, not nan
adapter.alpha=.inf => adapter.alpha: Input should be a finite number, not inf
adapter.alpha=x => adapter.alpha: Input should be a valid number, unable to parse string as a number, not 'x'
adapter.target_modules=to_q => adapter.target_modules: Input should be a valid tuple, not 'to_q'
adapter.target_modules=[] => adapter.target_modules: Tuple should have at least 1 item after validation, not 0, not []
adapter.target_modules=[""] => adapter.target_modules.0: String should have at least 1 character, not ''
adapter.target_modules=[1] => adapter.target_modules.0: Input should be a valid string, not 1
adapter.target_module=[to_q] => adapter.target_module: there is no such setting; did you mean 'target_modules'? here are
prompts=null => prompts: Input should be a valid dictionary or instance of PromptsConfig, not None
prompts=[a] => prompts: Input should be a valid dictionary or instance of PromptsConfig, not ['a']
prompts={} => prompts.train: is required
prompts.column=null => prompts.column: Input should be a valid string, not None
prompts.column=3 => prompts.column: Input should be a valid string, not 3
prompts.train=null => prompts.train: Input should be a valid tuple, not None
prompts.train=[] => prompts.train: Tuple should have at least 1 item after validation, not 0, not []
prompts.train=3 => prompts.train: Input should be a valid tuple, not 3
prompts.train={a: b} => prompts.train: Input should be a valid tuple, not {'a': 'b'}
prompts.train=[1] => prompts.train.0: Input should be a valid string, not 1
prompts.train=[null] => prompts.train.0: Input should be a valid string, not None
prompts.train=[""] => prompts.train: prompt 1 is empty; write a text, or delete it
prompts.train=["a star", " "] => prompts.train: prompt 2 is empty; write a text, or delete it
prompts.train=["a\0b"] => prompts.train: prompt 1 has a NUL character or half of a UTF-16 pair; remove it
prompts.train=["a\ud800b"] => prompts.train: '["a\\ud800b"]' is not a YAML value (while parsing a quoted scalar in line
prompts.train=[{MILLION}] => prompts.train: prompt 1 has 1000000 characters; shorten it to at most 10000
prompts.train=/no/where.txt => prompts.train: cannot read the prompt file /no/where.txt, which is no file; give a .txt
prompts.train=/dev/null => prompts.train: cannot read the prompt file /dev/null, which is no file; give a .txt file
prompts.train=/dev/zero => prompts.train: cannot read the prompt file /dev/zero, which is no file; give a .txt file
prompts.train=/ => prompts.train: / holds no image; put .png, .jpg, .jpeg, .webp files there
prompts.train=~nosuchuser/prompts.txt => prompts.train: ~nosuchuser/prompts.txt begins with a user whose home folder is not known;
prompts.train={LONG} => prompts.train: cannot read the prompt file
prompts.train="a\0b" => prompts.train: the text has a NUL character or half of a UTF-16 pair; remove it
prompts.train=shapes:tran => vader_ray/shapes/prompts/tran.txt, which is no
prompts.train=shapes:validation => prompts: 24 prompts are in both train and validation ('a blue square moving left', …); take
prompts.train=owner/dataset => owner/dataset, which is no file; give a .txt
prompts.train=https://example.com/prompts.txt => https:/example.com/prompts.txt, which is no
prompts.train=["no.png | a dog"] => no.png does not exist; write `path/to/image.png | text` with an
prompts.validation=null => prompts.validation: Input should be a valid tuple, not None
prompts.validation=[] => prompts.validation: Tuple should have at least 1 item after validation, not 0, not []
prompts.validation=[a] prompts.train=[a] => prompts: 1 prompts are in both train and validation ('a', …); take them out of one of the two
prompts.test=[] => prompts.test: Tuple should have at least 1 item after validation, not 0, not []
prompts.heldout=[a] => prompts.heldout: there is no such setting; here are column, test, train, validation
evaluation.num_test_videos=0 => evaluation.num_test_videos: Input should be greater than 0, not 0
sampling=null => sampling: Input should be a valid dictionary or instance of SamplingConfig, not None
sampling={} => sampling.num_frames: is required
sampling=3 => sampling: Input should be a valid dictionary or instance of SamplingConfig, not 3
sampling.num_frames=0 => sampling.num_frames: Input should be greater than 0, not 0
sampling.num_frames=-1 => sampling.num_frames: Input should be greater than 0, not -1
sampling.num_frames=1.5 => sampling.num_frames: Input should be a valid integer, got a number with a fractional part,
sampling.num_frames=null => sampling.num_frames: Input should be a valid integer, not None
sampling.num_frames=true => sampling.num_frames: true is no value of this setting; give a number or a text
sampling.num_frames=1000000000 => sampling.num_frames: Input should be less than or equal to 1048576, not 1000000000
sampling.num_frames=100000 sampling.height=8192 sampling.width=8192 => sampling: num_frames=100000, height=8192 and width=8192 are 75000 GiB for the frames of one
sampling.height=0 => sampling.height: Input should be greater than 0, not 0
sampling.height=10000000 => sampling.height: Input should be less than or equal to 32768, not 10000000
sampling.height=x => sampling.height: Input should be a valid integer, unable to parse string as an integer, not
sampling.width=-8 => sampling.width: Input should be greater than 0, not -8
sampling.width=40000 => sampling.width: Input should be less than or equal to 32768, not 40000
sampling.width=.inf => sampling.width: Input should be a finite number, not inf
sampling.num_inference_steps=0 => sampling.num_inference_steps: Input should be greater than 0, not 0
sampling.num_inference_steps=1000000000000 => sampling.num_inference_steps: Input should be less than or equal to 1048576, not
sampling.num_inference_steps=x => sampling.num_inference_steps: Input should be a valid integer, unable to parse string as an
sampling.guidance_scale=0.5 => sampling.guidance_scale: Input should be greater than or equal to 1, not 0.5
sampling.guidance_scale=-1 => sampling.guidance_scale: Input should be greater than or equal to 1, not -1
sampling.guidance_scale=.nan => sampling.guidance_scale: Input should be a finite number, not nan
sampling.guidance_scale=.inf => sampling.guidance_scale: Input should be a finite number, not inf
sampling.guidance_scale=high => sampling.guidance_scale: Input should be a valid number, unable to parse string as a
sampling.guidance=3 => sampling.guidance: there is no such setting; did you mean 'guidance_scale'? here are
sampling.negative_prompt=3 => sampling.negative_prompt: Input should be a valid string, not 3
sampling.negative_prompt="a\0b" => sampling.negative_prompt: the text has a NUL character or half of a UTF-16 pair; remove it
sampling.eta=-0.1 => sampling.eta: Input should be greater than or equal to 0, not -0.1
sampling.eta=1.5 => sampling.eta: Input should be less than or equal to 1, not 1.5
sampling.eta=.nan => sampling.eta: Input should be a finite number, not nan
sampling.eta=null => sampling.eta: Input should be a valid number, not None
sampling.scheduler=DDIMSchedule => has no scheduler 'DDIMSchedule'; did you mean 'DDIMScheduler'? give the name of one of its
sampling.scheduler=DPMSolverMultistepScheduler2 => has no scheduler 'DPMSolverMultistepScheduler2'; did you mean
sampling.scheduler=os => has no scheduler 'os'; give the name of one of its classes
sampling.scheduler=3 => sampling.scheduler: Input should be a valid string, not 3
sampling.scheduler=Schedulers => has no scheduler 'Schedulers'; did you mean 'LCMScheduler'? give the name of one of its
sampling.truncation=lst => sampling: truncation=lst is unknown; did you mean 'last'? give one of last, random, uniform
sampling.truncation=null => sampling.truncation.str: Input should be a valid string, not None
sampling.truncation=[] => Tuple should have at least 1 item after validation, not 0
sampling.truncation=[{step: 20}] => sampling: truncation lists the steps [20]; list ascending ones from 0 to 19
sampling.truncation=[{step: 3}, {step: 2}] => sampling: truncation lists the steps [3, 2]; list ascending ones from 0 to
sampling.truncation=leap sampling.truncation_depth=2 => sampling: truncation_depth=2 has no effect on truncation=leap, which
sampling.truncation=bridge => sampling.truncation_depth=1: bridge needs 2 or more
sampling.truncation=nowhere.plan => sampling.truncation: there is no module 'nowhere.plan' or 'nowhere'; install it or put
sampling.truncation=sparse sampling.truncation_options.bias=2 => sampling.truncation_options: sparse has no option bias; it
sampling.truncation_depth=0 => sampling.truncation_depth: Input should be greater than 0, not 0
sampling.truncation_depth=21 => sampling: truncation_depth=21 is more than num_inference_steps=20; choose 1 to 20
sampling.truncation_depth=99 => sampling: truncation_depth=99 is more than num_inference_steps=20; choose 1 to 20
sampling.truncation_depth=-1 => sampling.truncation_depth: Input should be greater than 0, not -1
sampling.truncation_depth=x => sampling.truncation_depth: Input should be a valid integer, unable to parse string as an
sampling.truncation_options.start=x => sampling.truncation_options.start: Input should be a valid number, unable to parse
sampling.truncation_options.start=3 => sampling.truncation_options: last has no option start; it has coupling
sampling.truncation=window sampling.truncation_options.start=-1 => sampling.truncation_options.start=-1 + truncation_depth=1 runs
sampling.truncation=window sampling.truncation_options.start=1.5 => sampling.truncation_options.start=1.5: give an integer
sampling.truncation=window sampling.truncation_options.start=20 => sampling.truncation_options.start=20 + truncation_depth=1 runs
sampling.truncation_options.coupling=2 => sampling.truncation_options.coupling=2.0: give a number from 0 to 1
sampling.recompute=sometimes => sampling.recompute.bool: Input should be a valid boolean, unable to interpret input, not
sampling.recompute=2 => sampling.recompute.bool: Input should be a valid boolean, unable to interpret input, not 2
sampling.prefix_cache=x => sampling.prefix_cache: String should match pattern '^(none|first_block:0?\.\d+|deep_features:[1-9]\d{0,3})$', not 'x'
sampling.prefix_cache=first_block => sampling.prefix_cache: String should match pattern '^(none|first_block:0?\.\d+|deep_features:[1-9]\d{0,3})$', not
sampling.prefix_cache=first_block:2 => sampling.prefix_cache: String should match pattern '^(none|first_block:0?\.\d+|deep_features:[1-9]\d{0,3})$', not
sampling.prefix_cache=first_block:-0.1 => sampling.prefix_cache: String should match pattern '^(none|first_block:0?\.\d+|deep_features:[1-9]\d{0,3})$', not
sampling.prefix_cache=deep_features:0 => sampling.prefix_cache: String should match pattern '^(none|first_block:0?\.\d+|deep_features:[1-9]\d{0,3})$', not
sampling.guidance_interval=0.5 => sampling.guidance_interval: Input should be a valid tuple, not 0.5
sampling.guidance_interval=[0.8,0.2] => sampling: guidance_interval=[0.8, 0.2] is empty; choose a first number below the second
sampling.guidance_interval=[0,2] => sampling.guidance_interval.1: Input should be less than or equal to 1, not 2
sampling.recompute=nested => sampling.recompute=nested recomputes blocks within gradient steps
sampling.steps=3 => sampling.steps: there is no such setting; here are eta, guidance_interval,
rewards=null => rewards: Input should be a valid tuple, not None
rewards=[] => rewards: Tuple should have at least 1 item after validation, not 0, not []
rewards={} => rewards: Input should be a valid tuple, not {}
rewards=hps => rewards: Input should be a valid tuple, not 'hps'
rewards=[hps] => rewards.0: Input should be a valid dictionary or instance of RewardConfig, not 'hps'
rewards=[{}] => rewards.0.reward: is required
rewards=[null] => rewards.0: Input should be a valid dictionary or instance of RewardConfig, not None
rewards.0=3 => rewards.0: Input should be a valid dictionary or instance of RewardConfig, not 3
rewards.1.weight=3 => rewards.1.weight: '1' is no item of a list of 1
rewards.5.weight=1 => rewards.5.weight: '5' is no item of a list of 1
rewards.-1.weight=1 => rewards.-1.weight: '-1' is no item of a list of 1
rewards.x.weight=1 => rewards.x.weight: 'x' is no item of a list of 1
rewards.²=3 => rewards.²: '²' is no item of a list of 1
rewards.00000000000000000001=3 => rewards.00000000000000000001: '00000000000000000001' is no item of a list of 1
rewards.0.reward= => rewards.0.reward: Input should be a valid string, not None
rewards.0.reward=null => rewards.0.reward: Input should be a valid string, not None
rewards.0.reward=hsp => reward: there is no 'hsp'; did you mean 'hps'? give one of action, aesthetic,
rewards.0.reward=pikscore => reward: there is no 'pikscore'; did you mean 'pickscore'? give one of action, aesthetic,
rewards.0.reward=os.path => reward: posixpath must define one class whose name ends in Reward and defines none; name
rewards.0.reward=.. => reward: there is no '..'; give one of action, aesthetic,
rewards.0.reward=no.such.module => reward: there is no module 'no.such.module' or 'no.such'; install it or put its folder on
rewards.0.reward=numpy.array => reward: numpy.array is a builtin_function_or_method; name a class or a function
rewards.0.reward=../hps => reward: there is no '../hps'; did you mean 'hps'? give one of action, aesthetic,
rewards.0.rewrad=hps => hps: there is no option 'rewrad'; it has architecture, preprocessing, version, weights
rewards.0.weight=.nan => rewards.0.weight: Input should be a finite number, not nan
rewards.0.weight=-.inf => rewards.0.weight: Input should be a finite number, not -inf
rewards.0.weight=null => rewards.0.weight: Input should be a valid number, not None
rewards.0.weight=x => rewards.0.weight: Input should be a valid number, unable to parse string as a number, not
rewards.0.weight=true => rewards.0.weight: true is no value of this setting; give a number or a text
rewards.0.weights=/no/where => hps.weights: /no/where does not exist; give an existing path, a hub id (owner/name) or
rewards.0.weights=shapes:hsp => hps.weights: 'shapes:hsp' names no packaged checkpoint; did you mean 'shapes:hps'? there
rewards.0.weights=3 => hps.weights: Input should be a valid string, not 3
rewards.0.weights="a\0b" => hps.weights: 'a\x00b' has a NUL character or half of a UTF-16 pair; remove it
rewards.0.weights=~nosuchuser/x => hps.weights: ~nosuchuser/x begins with a user whose home folder is not known; give it in
rewards.0.weights={LONG} => does not exist; give an existing path, a hub id (owner/name) or shapes:NAME
rewards.0.target=.inf => rewards.0.target: Input should be a finite number, not inf
rewards.0.hinge=x => rewards.0.hinge: Input should be a valid number, unable to parse string as a number, not
rewards.0.dropout=-0.1 => rewards.0.dropout: Input should be greater than or equal to 0, not -0.1
generation.adapter_strength=x => generation.adapter_strength: Input should be a valid tuple, not 'x'
generation.adapter_strength=[] => generation.adapter_strength: Tuple should have at least 1 item after validation
generation.adapter_strength=[[2, 1]] => generation.adapter_strength.0.0: Input should be less than or equal to 1, not 2
rewards.0.target=x => rewards.0.target: Input should be a valid number, unable to parse string as a number, not
rewards.0.label=a/b => rewards.0.label: String should match pattern '^[\w.\- ]+$', not 'a/b'
rewards.0.label=3 => rewards.0.label: Input should be a valid string, not 3
rewards.0.label={LONG} => rewards.0.label: String should have at most 100 characters, not
rewards.0.frames=some => rewards.0.frames: String should match pattern
rewards.0.frames=first:0 => rewards.0.frames: String should match pattern
rewards.0.frames=first => rewards.0.frames: String should match pattern
rewards.0.frames=first:100 => recipe: hps: frames=first:100 needs 100 frames and sampling.num_frames=8; choose earlier
rewards.0.frames=frame:8 => recipe: hps: frames=frame:8 needs 9 frames and sampling.num_frames=8; choose earlier frames
rewards.0.frames=frame:-1 => rewards.0.frames: String should match pattern
rewards.0.frames=random:99 => recipe: hps: frames=random:99 needs 99 frames and sampling.num_frames=8; choose earlier
rewards.0.frames=random:99999999999999999999 => rewards.0.frames: String should match pattern
rewards.0.frames=stride:0 => rewards.0.frames: String should match pattern
rewards.0.frames=3 => rewards.0.frames: Input should be a valid string, not 3
rewards.0.precision=int8 => rewards.0.precision: Input should be 'float32', 'bfloat16' or 'float16', not 'int8'
rewards.0.precision=float64 => rewards.0.precision: Input should be 'float32', 'bfloat16' or 'float16', not 'float64'
rewards.0.placement=3 => rewards.0.placement: Input should be a valid dictionary or instance of PlacementConfig, not
rewards.0.placement={} => rewards.0.placement.actor: is required
rewards.0.placement.acter=x => rewards.0.placement.actor: is required
rewards.0.placement={actor: a, colour: red} => rewards.0.placement.colour: there is no such setting; here are actor, max_retries,
rewards.0.placement={actor: a/b} => rewards.0.placement.actor: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', not
rewards.0.placement={actor: a, num_replicas: 0} => rewards.0.placement.num_replicas: Input should be greater than 0, not 0
rewards.0.placement={actor: a, num_replicas: 1000000} => rewards.0.placement.num_replicas: Input should be less than or equal to 4096, not 1000000
rewards.0.placement={actor: a, num_cpus: -1} => rewards.0.placement.num_cpus: Input should be greater than or equal to 0, not -1
rewards.0.placement={actor: a, num_gpus: .nan} => rewards.0.placement.num_gpus: Input should be a finite number, not nan
rewards.0.placement={actor: a, resources: {x: 0}} => rewards.0.placement.resources.x: Input should be greater than 0, not 0
rewards.0.placement={actor: a, transport: float8} => rewards.0.placement.transport: Input should be 'float32', 'bfloat16' or 'float16', not
rewards.0.placement={actor: a, timeout_seconds: 0} => rewards.0.placement.timeout_seconds: Input should be greater than 0, not 0
rewards.0.placement={actor: a, timeout_seconds: .inf} => rewards.0.placement.timeout_seconds: Input should be a finite number, not inf
rewards.0.placement={actor: a, max_retries: -1} => rewards.0.placement.max_retries: Input should be greater than or equal to 0, not -1
rewards.0.placement={actor: a, runtime_env: 3} => rewards.0.placement.runtime_env: Input should be a valid dictionary, not 3
rewards.0.colour=red => hps: there is no option 'colour'; it has architecture, preprocessing, version, weights
rewards=[{reward: hps},{reward: hps}] => recipe: two rewards are called 'hps'; give one of them another `label`
eval_rewards=null => eval_rewards: Input should be a valid tuple, not None
eval_rewards=3 => eval_rewards: Input should be a valid tuple, not 3
eval_rewards=[{reward: hps, weights: shapes:hps}] => recipe: two rewards are called 'hps'; give one of them another `label`
eval_rewards=[{reward: hsp}] => reward: there is no 'hsp'; did you mean 'hps'? give one of action, aesthetic,
eval_rewards.0.reward=hps => recipe: two rewards are called 'hps'; give one of them another `label`
eval_rewards.0.frames=frame:99 => recipe: aesthetic: frames=frame:99 needs 100 frames and sampling.num_frames=8; choose
eval_metrics=null => eval_metrics: Input should be a valid tuple, not None
eval_metrics=3 => eval_metrics: Input should be a valid tuple, not 3
eval_metrics=[{}] => eval_metrics.0.metric: is required
eval_metrics=[{metric: motoin}] => metric: there is no 'motoin'; did you mean 'motion'? give one of
eval_metrics=[{metric: motion}] => recipe: two metrics are called 'motion'; give one of eval_metrics another `label`
eval_metrics=[{metric: motion, label: objective}] => recipe: eval_metrics: eval/objective is logged by every evaluation; give the metric another
eval_metrics=[{metric: clip_diversity, weights: /no/where}] => clip_diversity.weights: /no/where does not exist; give an existing path, a hub id
eval_metrics=[{metric: clip_diversity, wieghts: x}] => clip_diversity: there is no option 'wieghts'; did you mean 'weights'? it has weights
eval_metrics=[{reward: hps}] => eval_metrics.0.metric: is required
eval_metrics=[{metric: motion, label: a},{metric: motion, label: a}] => recipe: two metrics are called 'a'; give one of eval_metrics another `label`
optimizer=null => optimizer: Input should be a valid dictionary or instance of OptimizerConfig, not None
optimizer.learning_rate=0 => optimizer.learning_rate: Input should be greater than 0, not 0
optimizer.learning_rate=-1e-4 => optimizer.learning_rate: Input should be greater than 0, not -0.0001
optimizer.learning_rate=1e400 => optimizer.learning_rate: Input should be a finite number, not inf
optimizer.learning_rate=.nan => optimizer.learning_rate: Input should be a finite number, not nan
optimizer.learning_rate=fast => optimizer.learning_rate: Input should be a valid number, unable to parse string as a
optimizer.learning_rate=null => optimizer.learning_rate: Input should be a valid number, not None
optimizer.learning_rate=true => optimizer.learning_rate: true is no value of this setting; give a number or a text
optimizer.lr=1e-3 => optimizer.lr: there is no such setting; here are betas, ema_decay, eps, learning_rate
optimizer.betas=0.9 => optimizer.betas: Input should be a valid tuple, not 0.9
optimizer.betas=[0.9] => optimizer.betas.1: is required
optimizer.betas=[0.9, 0.99, 0.999] => optimizer.betas: Tuple should have at most 2 items after validation, not 3, not [0.9, 0.99,
optimizer.betas=[0.9, 1.0] => optimizer.betas.1: Input should be less than 1, not 1.0
optimizer.betas=[-0.1, 0.5] => optimizer.betas.0: Input should be greater than or equal to 0, not -0.1
optimizer.betas=[.nan, 0.5] => optimizer.betas.0: Input should be a finite number, not nan
optimizer.eps=0 => optimizer.eps: Input should be greater than 0, not 0
optimizer.eps=-1 => optimizer.eps: Input should be greater than 0, not -1
optimizer.weight_decay=-0.1 => optimizer.weight_decay: Input should be greater than or equal to 0, not -0.1
optimizer.weight_decay=.inf => optimizer.weight_decay: Input should be a finite number, not inf
optimizer.max_grad_norm=0 => optimizer.max_grad_norm: Input should be greater than 0, not 0
optimizer.max_grad_norm=.nan => optimizer.max_grad_norm: Input should be a finite number, not nan
optimizer.name=sgd => optimizer.name: Input should be 'adamw' or 'adamw8bit', not 'sgd'
optimizer.schedule=step => optimizer.schedule: Input should be 'constant', 'cosine' or 'linear', not 'step'
optimizer.warmup_steps=-1 => optimizer.warmup_steps: Input should be greater than or equal to 0, not -1
optimizer.schedule_steps=4 => optimizer: schedule_steps=4 has no effect on schedule=constant; set
optimizer.ema_decay=1 => optimizer.ema_decay: Input should be less than 1, not 1
optimizer.max_nonfinite_steps=0 => optimizer.max_nonfinite_steps: Input should be greater than 0, not 0
evaluation=null => evaluation: Input should be a valid dictionary or instance of EvaluationConfig, not None
evaluation.every=0 => evaluation.every: Input should be greater than 0, not 0
evaluation.every=x => evaluation.every: Input should be a valid integer, unable to parse string as an integer,
evaluation.num_videos=0 => evaluation.num_videos: Input should be greater than 0, not 0
evaluation.num_videos=1000000000 => evaluation.num_videos: Input should be less than or equal to 1048576, not 1000000000
evaluation.num_shown=0 => evaluation.num_shown: Input should be greater than 0, not 0
evaluation.frames_per_second=0 => evaluation.frames_per_second: Input should be greater than 0, not 0
evaluation.frames_per_second=100000 => evaluation.frames_per_second: Input should be less than or equal to 1000, not 100000
evaluation.select=eval/reward/hsp => recipe: evaluation.select='eval/reward/hsp' is never measured; did you mean
evaluation.select=hps => recipe: evaluation.select='hps' is never measured; choose one of eval/objective,
evaluation.select=3 => evaluation.select: Input should be a valid string, not 3
guard=null => guard: Input should be a valid dictionary or instance of GuardConfig, not None
guard.action=stp => guard.action: Input should be 'none', 'flag' or 'stop', not 'stp'
guard.action=null => guard.action: Input should be 'none', 'flag' or 'stop', not None
guard.metrics=eval/motion => guard.metrics: Input should be a valid tuple, not 'eval/motion'
guard.metrics=[eval/mtion] => guard.metrics: 'eval/mtion' is never measured; did you mean 'eval/motion'? choose of
guard.metrics=[3] => guard.metrics.0: Input should be a valid string, not 3
guard.metrics=[eval/distance_to_base] guard.unit=relative => guard.unit: eval/distance_to_base starts at 0, so its bound cannot be relative; set
guard.bound=-1 => guard.bound: Input should be greater than or equal to 0, not -1
guard.bound=.nan => guard.bound: Input should be a finite number, not nan
guard.unit=standard_errors => guard.unit: Input should be 'absolute', 'relative' or 'effect_size', not 'standard_errors'
guard.reference=best => guard.reference: Input should be 'any' or 'base', not 'best'
guard.false_alarm_rate=0 => guard.false_alarm_rate: Input should be greater than 0, not 0
guard.false_alarm_rate=0.9 => guard.false_alarm_rate: Input should be less than or equal to 0.5, not 0.9
guard.refrence=any => guard.refrence: there is no such setting; did you mean 'reference'? here are action, bound,
checkpoint=null => checkpoint: Input should be a valid dictionary or instance of CheckpointConfig, not None
checkpoint.every=0 => checkpoint.every: Input should be greater than 0, not 0
checkpoint.keep=0 => checkpoint.keep: Input should be greater than 0, not 0
checkpoint.keep=-1 => checkpoint.keep: Input should be greater than 0, not -1
tracking=null => tracking: Input should be a valid dictionary or instance of TrackingConfig, not None
tracking.uri=3 => tracking.uri: Input should be a valid string, not 3
tracking.experiment=3 => tracking.experiment: Input should be a valid string, not 3
tracking.system_metrics=perhaps => tracking.system_metrics: Input should be a valid boolean, unable to interpret input, not
tracking.url=x => tracking.url: there is no such setting; did you mean 'uri'? here are experiment,
runtime=null => runtime: Input should be a valid dictionary or instance of RuntimeConfig, not None
runtime.num_workers=0 => runtime.num_workers: Input should be greater than 0, not 0
runtime.num_workers=3 => recipe: videos_per_step=8 cannot be shared evenly by runtime.num_workers=3; choose a divisor
runtime.num_workers=1000000 => recipe: videos_per_step=8 cannot be shared evenly by runtime.num_workers=1000000; choose a
runtime.num_workers=10000000 => runtime.num_workers: Input should be less than or equal to 1048576, not 10000000
runtime.num_workers=x => runtime.num_workers: Input should be a valid integer, unable to parse string as an integer,
runtime.min_workers=0 => runtime.min_workers: Input should be greater than 0, not 0
runtime.min_workers=3 => runtime: min_workers=3 is more than num_workers=1
runtime.use_gpu=perhaps => runtime.use_gpu: Input should be a valid boolean, unable to interpret input, not 'perhaps'
runtime.micro_batch_size=0 => runtime.micro_batch_size.constrained-int: Input should be greater than 0, not 0
runtime.micro_batch_size=big => runtime.micro_batch_size.constrained-int: Input should be a valid integer, unable to parse
runtime.prefix_batch_size=-1 => runtime.prefix_batch_size.constrained-int: Input should be greater than 0, not -1
runtime.decode_chunk_size=0 => runtime.decode_chunk_size: Input should be greater than 0, not 0
runtime.decode_chunk_size=auto => runtime.decode_chunk_size: Input should be a valid integer, unable to parse string as an
runtime.activation_checkpointing=blok => runtime.activation_checkpointing.literal['none','block','attention']: Input should be
runtime.compile=all => runtime.compile: Input should be 'none' or 'blocks', not 'all'
runtime.num_threads=0 => runtime.num_threads: Input should be greater than 0, not 0
runtime.num_threads=1000000 => runtime.num_threads: Input should be less than or equal to 4096, not 1000000
runtime.max_failures=-1 => runtime.max_failures: Input should be greater than or equal to 0, not -1
runtime.max_failures=1.5 => runtime.max_failures: Input should be a valid integer, got a number with a fractional part,
runtime.wait_minutes=-1 => runtime.wait_minutes: Input should be greater than or equal to 0, not -1
runtime.wait_minutes=.nan => runtime.wait_minutes: Input should be a finite number, not nan
runtime.workers=2 => runtime.workers: there is no such setting; did you mean 'min_workers'? here are
expected_metrics=[1] => expected_metrics: Input should be a valid dictionary, not [1]
expected_metrics={eval/reward/hps: .nan} => expected_metrics.eval/reward/hps: Input should be a finite number, not nan
expected_metrics={eval/reward/hps: x} => expected_metrics.eval/reward/hps: Input should be a valid number, unable to parse string as
expected_metrics={1: 2} => expected_metrics.1.[key]: Input should be a valid string, not 1
=3 => '=3' is not an override; write a.b=value
a => 'a' is not an override; write a.b=value
num_steps => 'num_steps' is not an override; write a.b=value
.=3 => recipe: there is no such setting; here are adapter, algorithm, checkpoint, description,
a..b=3 => a: there is no such setting; here are adapter, algorithm, checkpoint, description,
sampling.=1 => sampling.: there is no such setting; here are eta, guidance_interval,
.seed=1 => recipe: there is no such setting; here are adapter, algorithm, checkpoint, description,
num_steps.more=1 => num_steps.more: 'num_steps' is a value, not a section
[]=3 => []: there is no such setting; here are adapter, algorithm, checkpoint, description,
1=3 => 1: there is no such setting; here are adapter, algorithm, checkpoint, description,
sampling.1=3 => sampling.1: there is no such setting; here are eta, guidance_interval,
name=[[[ => name: '[[[' is not a YAML value (while parsing a flow node did not find expected node
name=*a => name: '*a' is not a YAML value (found undefined alias in line 1, column 1)
name=&a [*a] => name: '&a [*a]' is not a YAML value (an alias contains itself)
description={a: 1, a: 2} => description: '{a: 1, a: 2}' is not a YAML value ('a' is given in line 1 and again in line 1)
name=!!python/object:os.system x => name: '!!python/object:os.system x' is not a YAML value (could not determine a constructor
seed={DIGITS} => is not a YAML value (Exceeds the limit (4300 digits) for integer string conversion
description={DEEP} => is not a YAML value (while increasing flow level exceeded maximum nesting depth
"""
