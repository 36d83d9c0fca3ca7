# docker build -t vader-ray . && docker run --gpus all -v "$PWD/runs:/workspace/runs" vader-ray train world_hps
# The wheels bring their own CUDA libraries; the host needs only NVIDIA's driver and container toolkit.
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY vader_ray vader_ray
RUN pip install .

FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 1000 vader && install -d -o vader /workspace /weights
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH HF_HOME=/weights
VOLUME /weights
USER 1000
WORKDIR /workspace
ENTRYPOINT ["vader-ray"]
CMD ["--help"]
