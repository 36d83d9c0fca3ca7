"""Command lines that are refused, with a piece of the sentence: what is wrong, and the remedy."""

from __future__ import annotations

REFUSED = r"""
nonsense => No such command 'nonsense'.
train => Missing argument 'recipe'.
train nothing => there is no recipe 'nothing'; give the path of a YAML file or one of
train shape_hps => there is no recipe 'shape_hps'; did you mean 'shapes_hps'? give the path of a YAML file or
train tiny.yml => there is no recipe 'tiny.yml'; give the path of a YAML file or one of
train folder => there is no recipe 'folder'; give the path of a YAML file or one of
train fifo => there is no recipe 'fifo'; give the path of a YAML file or one of
train empty.yaml => empty.yaml must hold a mapping of settings, not NoneType
train list.yaml => list.yaml must hold a mapping of settings, not list
train binary.yaml => binary.yaml cannot be read as YAML: 'utf-8' codec can't decode byte 0x80 in position 128:
train latin.yaml => latin.yaml cannot be read as YAML: 'utf-8' codec can't decode byte 0xe9 in position 6:
train two.yaml => two.yaml cannot be read as YAML: it has 2 documents; one is read
train {LONG} => give the path of a YAML file or one of
train ~nosuchuser/x.yaml => ~nosuchuser/x.yaml begins with a user whose home folder is not known; give it in full
train tiny.yaml a => 'a' is not an override; write a.b=value
train tiny.yaml num_step=3 => num_step: there is no such setting; did you mean 'num_steps'? here are adapter, algorithm,
train tiny.yaml --workers 0 => runtime.num_workers: Input should be greater than 0, not 0
train tiny.yaml --workers -1 => runtime.num_workers: Input should be greater than 0, not -1
train tiny.yaml --workers x => Invalid value for '--workers' / '-w': Input should be a valid integer,
train tiny.yaml --workers 3 => recipe: videos_per_step=4 cannot be shared evenly by runtime.num_workers=3; choose a divisor
train tiny.yaml --workers 1000000 => recipe: videos_per_step=4 cannot be shared evenly by runtime.num_workers=1000000; choose a
train tiny.yaml --run-name .. => --run-name '..' cannot name a run; begin with a letter or a digit, go on with letters,
train tiny.yaml --run-name a/b => --run-name 'a/b' cannot name a run; begin with a letter or a digit, go on with letters,
train tiny.yaml --run-name {LONG} => cannot name a run; begin with a letter
train tiny.yaml --run-name "" => --run-name '' cannot name a run; begin with a letter or a digit, go on with letters,
train tiny.yaml --run-name " " => --run-name ' ' cannot name a run; begin with a letter or a digit, go on with letters,
train tiny.yaml --run-name é => --run-name 'é' cannot name a run; begin with a letter or a digit, go on with letters,
train tiny.yaml --run-name -x => --run-name '-x' cannot name a run; begin with a letter or a digit, go on with letters,
train tiny.yaml --runs-dir file.txt => cannot be written (Not a directory); give another --runs-dir
train tiny.yaml --runs-dir file.txt/runs => cannot be written (Not a directory); give another --runs-dir
train tiny.yaml --runs-dir {LONG} => cannot be written (File name too long); give another --runs-dir
train tiny.yaml --resume => runs; start one without --resume
train tiny.yaml --resume --run-name mine => runs to resume; start it without --resume
train tiny.yaml --no-such-option => No such option: --no-such-option
train tiny.yaml tracking.uri=foo://bar => tracking.uri: 'foo://bar' is not an MLflow server or database; give http(s)://HOST:PORT or
train tiny.yaml tracking.uri=postgresql://u:geheim@localhost/db => tracking.uri: postgresql databases need the Python module 'psycopg', which is not
train tiny.yaml tracking.uri=mysql+pymysql://h/db => tracking.uri: mysql+pymysql databases need the Python module 'pymysql', which is not
train tiny.yaml tracking.uri=sqlite:////dev/zero => tracking.uri: MLflow at sqlite:////dev/zero does not work (/dev/zero is no regular file);
train tiny.yaml tracking.uri=sqlite:////dev/null/x.db => tracking.uri: MLflow at sqlite:////dev/null/x.db does not work ([Errno 17] File exists:
train tiny.yaml tracking.uri=http://[ => tracking.uri: MLflow at http://[ does not work (Invalid IPv6 URL); start it, or choose
train tiny.yaml tracking.uri=http://localhost:1 => tracking.uri: MLflow at http://localhost:1 does not work ([Errno 111] Connection refused);
evaluate => Missing argument 'recipe'.
evaluate nothing => there is no recipe 'nothing'; give the path of a YAML file or one of
evaluate tiny.yaml -o folder => folder is a folder; give the path of a file, such as folder/output
evaluate tiny.yaml -o file.txt/x.json => file.txt/x.json cannot be written (file.txt is no folder); choose another path
evaluate tiny.yaml -o fifo => fifo is a device or a named pipe; give the path of a file
evaluate tiny.yaml -o /dev/full => /dev/full is a device or a named pipe; give the path of a file
evaluate tiny.yaml --adapter nothing => nothing has no adapter; give a folder with adapter_model.safetensors and adapter_config.json
evaluate tiny.yaml --adapter folder => folder has no adapter; give a folder with adapter_model.safetensors and adapter_config.json
evaluate tiny.yaml --adapter file.txt => file.txt (7 bytes) cannot be read as a checkpoint of plain tensors (IndexError); it was cut
evaluate tiny.yaml num_step=3 => num_step: there is no such setting; did you mean 'num_steps'? here are adapter, algorithm,
generate => Missing argument 'recipe'.
generate tiny.yaml => Missing argument 'prompt'.
generate nothing "a star" => there is no recipe 'nothing'; give the path of a YAML file or one of
generate tiny.yaml "" => prompts: prompt 1 is empty; write a text, or delete it
generate tiny.yaml "  " => prompts: prompt 1 is empty; write a text, or delete it
generate tiny.yaml {MILLION} => prompts: prompt 1 has 1000000 characters; shorten it to at most 10000
generate tiny.yaml "a star" -o folder => folder is a folder; give the path of a file, such as folder/output.mp4
generate tiny.yaml "a star" -o x.png => x.png does not end in .mp4, the format that is written; give such a path
generate tiny.yaml "a star" -o x => x does not end in .mp4, the format that is written; give such a path
generate tiny.yaml "a star" -o file.txt/x.mp4 => file.txt/x.mp4 cannot be written (file.txt is no folder); choose another path
generate tiny.yaml "a star" -o fifo.mp4 => fifo.mp4 is a device or a named pipe; give the path of a file
generate tiny.yaml "a star" --seed -1 => seed=-1: give a whole number from 0 to 9223372036854775807
generate tiny.yaml "a star" --seed 9223372036854775808 => seed=9223372036854775808: give a whole number from 0 to 9223372036854775807
generate tiny.yaml "a star" --seed 1.5 => Invalid value for '--seed': Input should be a valid integer, unable to parse
generate tiny.yaml "a star" --seed x => Invalid value for '--seed': Input should be a valid integer, unable to parse
generate tiny.yaml "no.png | a star" => the image no.png does not exist; write `path/to/image.png | text` with an existing image
generate tiny.yaml "a star" --adapter nothing => nothing has no adapter; give a folder with adapter_model.safetensors and adapter_config.json
generate tiny.yaml "a star" --adapter fifo => fifo has no adapter; give a folder with adapter_model.safetensors and adapter_config.json
check => Missing argument 'recipe'.
check nothing => there is no recipe 'nothing'; give the path of a YAML file or one of
check folder => there is no recipe 'folder'; give the path of a YAML file or one of
check tiny.yaml --devices h1000 => --devices: there is no 'h1000'; did you mean 'h100'? choose from a10g, a100-40, a100-80,
check tiny.yaml --devices "" => --devices: there is no ''; choose from a10g, a100-40, a100-80, b200, h100, h200, l4, l40s, rtx4090,
check tiny.yaml --devices h100, => --devices: there is no ''; choose from a10g, a100-40, a100-80, b200, h100, h200, l4, l40s, rtx4090,
check tiny.yaml --devices "h100 a100" => --devices: there is no 'h100 a100'; choose from a10g, a100-40, a100-80, b200, h100, h200, l4, l40s,
check tiny.yaml sampling.truncation_depth=99 => sampling: truncation_depth=99 is more than num_inference_steps=5; choose 1 to 5
check tiny.yaml --workers 0 => runtime.num_workers: Input should be greater than 0, not 0
fetch nothing => there is no recipe 'nothing'; give the path of a YAML file or one of
fetch tiny.yaml rewards.0.reward=brightnes => r-ray: reward: there is no 'brightnes'; did you mean 'brightness'? give one of action,
list => Missing argument 'KIND'.
list dogs => 'dogs' cannot be listed; choose one of models, rewards, metrics, recipes, algorithms
list model => 'model' cannot be listed; did you mean 'models'? choose one of models, rewards, metrics,
list reward => 'reward' cannot be listed; did you mean 'rewards'? choose one of models, rewards, metrics,
list recipe => 'recipe' cannot be listed; did you mean 'recipes'? choose one of models, rewards, metrics,
list MODELS => 'MODELS' cannot be listed; choose one of models, rewards, metrics, recipes
report => Missing argument 'targets'.
report nothing -o folder => folder is a folder; give the path of a file, such as folder/output.html
report nothing -o x.png => x.png does not end in .html, the format that is written; give such a path
report nothing -o file.txt/x.html => file.txt/x.html cannot be written (file.txt is no folder); choose another path
report nothing --tracking-uri foo://bar => tracking.uri: 'foo://bar' is not an MLflow server or database; give http(s)://HOST:PORT or
report nothing --tracking-uri sqlite:////dev/null/x.db => there is no MLflow database /dev/null/x.db; give --tracking-uri or set MLFLOW_TRACKING_URI
report nothing --tracking-uri postgresql://h/db => tracking.uri: postgresql databases need the Python module 'psycopg', which is not
report nothing --tracking-uri http://localhost:1 => tracking.uri: MLflow at http://localhost:1 does not work ([Errno 111] Connection refused);
push nothing OWNER/NAME => there is no folder nothing; give that of a saved adapter: runs/NAME/best_adapter
push folder NAME => 'NAME' names no repository of the hub; give OWNER/NAME
push folder OWNER/NAME => the base model of the adapter in folder is not known, since it is in no run's folder; give
push folder OWNER/NAME --base-model a/b => folder has no adapter; give a folder with adapter_model.safetensors and
export => Missing argument 'adapter'.
export nothing -o out => nothing has no adapter; give a folder with adapter_model.safetensors and adapter_config.json
export folder -o out => folder has no adapter; give a folder with adapter_model.safetensors and adapter_config.json
export file.txt -o out => file.txt (7 bytes) cannot be read as a checkpoint of plain tensors (IndexError); it was cut
export fifo -o out => fifo has no adapter; give a folder with adapter_model.safetensors and adapter_config.json
export nothing -o file.txt/out => file.txt is no folder); choose another path
export nothing -o out --format peff => Invalid value for '--format': Value error, 'peff' is not one of 'diffusers',
export nothing -o out.safetensors --format peft => out.safetensors: peft's format is two files; give a folder
export nothing -o out --merge => --merge needs the model into which the adapter goes; name its recipe by --recipe
export nothing -o out --recipe nothing => there is no recipe 'nothing'; give the path of a YAML file or one of
export nothing -o out --merge --recipe tiny.yaml => nothing has no adapter; give a folder with adapter_model.safetensors and adapter_config.json
mix => Missing argument 'WEIGHT=ADAPTER...'.
mix folder -o out => 'folder' is not WEIGHT=ADAPTER with a finite weight; write 0.5=runs/a/best_adapter
mix 0.5=nothing -o out => nothing has no adapter; give a folder with adapter_model.safetensors and adapter_config.json
mix nan=folder -o out => 'nan=folder' is not WEIGHT=ADAPTER with a finite weight; write 0.5=runs/a/best_adapter
mix inf=folder -o out => 'inf=folder' is not WEIGHT=ADAPTER with a finite weight; write 0.5=runs/a/best_adapter
mix x=folder -o out => 'x=folder' is not WEIGHT=ADAPTER with a finite weight; write 0.5=runs/a/best_adapter
mix 0.5= -o out => '0.5=' is not WEIGHT=ADAPTER with a finite weight; write 0.5=runs/a/best_adapter
mix =folder -o out => '=folder' is not WEIGHT=ADAPTER with a finite weight; write 0.5=runs/a/best_adapter
mix 0.5=nothing 0.5=nothing -o file.txt/out => file.txt is no folder); choose another path
sync => Missing argument 'folder'.
sync nothing => nothing is no folder; give the folder of a run, such as runs/NAME
sync file.txt => file.txt is no folder; give the folder of a run, such as runs/NAME
watch-notices => Missing argument 'cloud'. Choose from:
watch-notices azure => Invalid value for 'cloud': Value error, 'azure' is not one of 'aws', 'gcp'.
watch-notices gcp --every nan => --every nan: give the seconds between requests, a finite number above 0
watch-notices gcp --every x => Invalid value for '--every': Input should be a valid number, unable to parse
pools --no-such => No such option: --no-such
train tiny.yaml --runs-dir ~nosuchuser/runs => ~nosuchuser/runs begins with a user whose home folder is not known; give it in full
train tiny.yaml --storage "" => --storage '': give s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or a shared folder
train tiny.yaml --storage file.txt => file.txt cannot be written
train tiny.yaml --storage file.txt/x => file.txt/x cannot be written
train tiny.yaml --storage ~nosuchuser/x => ~nosuchuser/x begins with a user whose home folder is not known; give it in full
sync damaged => damaged/undelivered.jsonl is damaged (Expecting property name enclosed in double quotes:
generate tiny.yaml "a star" -o /proc/nowhere/x.mp4 => /proc/nowhere/x.mp4 cannot be written (No such file or directory); choose another path
evaluate tiny.yaml -o /proc/nowhere/x.json => /proc/nowhere/x.json cannot be written (No such file or directory); choose another path
fetch tiny.yaml "eval_metrics=[{metric: clip_diversity, weights: owner/name}]" => clip_diversity: cannot get config.json and preprocessor_config.json and model.safetensors
export tiny.yaml -o out --format peft => bytes) cannot be read as a checkpoint of plain tensors (IndexError); it was
watch-notices aws --every 0 => --every 0.0: give the seconds between requests, a finite number above 0
watch-notices aws --every -1 => --every -1.0: give the seconds between requests, a finite number above 0
train tiny.yaml --storage foo://bar => --storage foo://bar: Unrecognized filesystem type in URI: foo://bar; give s3://BUCKET/PREFIX
fetch tiny.yaml model.weights=owner/name => model.weights: 'owner/name' is neither a local folder nor in the Hugging Face cache
"""
