# One image for every place: this machine, head and workers of a cluster, Kubernetes (docs/clusters.md).
#   docker build -t vader-ray:0.1.0 .
#   docker run --gpus all --shm-size 8g -v vader-ray-weights:/weights -v vader-ray-runs:/workspace vader-ray:0.1.0 train shapes_hps
# Runs and mlflow.db are in /workspace, a volume of the container's user, 1000. To have them in a folder of yours, run as yourself:
#   docker run --user "$(id -u)" -e HOME=/tmp -v "$PWD:/workspace" -v "$HOME/.cache/huggingface:/weights" … train shapes_hps
# The wheels bring their own CUDA libraries; the host needs only NVIDIA's driver and container toolkit. Weights stay outside.
# A release gives the base by digest: docker build --build-arg BASE=python:3.11-slim-bookworm@sha256:…
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY vader_ray vader_ray
COPY sweeps sweeps
COPY clusters clusters
# Ray exactly, for all machines of a cluster must have the same; the rest as pyproject.toml pins it.
# hadolint ignore=DL3013
RUN pip install ".[aws,gcp,server]" "ray[default,train,tune]==2.60.0"

FROM ${BASE}
# The autoscaler on the head reaches its workers by ssh and rsync, older KubeRay operators ask for health by wget, and the
# launcher's commands by curl. Their versions are the distribution's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends curl openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 vader \
    && install -d -o vader -g vader /workspace /weights
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH HF_HOME=/weights
# A new volume takes over owner and mode of these folders.
VOLUME ["/weights", "/workspace"]
USER 1000
WORKDIR /workspace
# Whether Ray answers, in a container in which `ray start` serves it, as head or worker; it writes the address to this file. Where a
# cluster requires a token, the container needs it: -e RAY_AUTH_MODE=token -e RAY_AUTH_TOKEN=…. Other commands serve nothing.
HEALTHCHECK --interval=60s --timeout=30s --start-period=180s --retries=3 \
    CMD ["sh", "-c", "file=${RAY_TMPDIR:-/tmp}/ray/ray_current_cluster; [ ! -e $file ] || ray health-check --address $(cat $file)"]
ENTRYPOINT ["vader-ray"]
CMD ["--help"]
