# One image, three commands: `serve`, `worker` and the shell's. For CPUs; DEVICE=cuda, TORCH_SPEC=torch==2.13.0 and an empty TORCH_INDEX
# make the one for NVIDIA GPUs.
ARG BASE_IMAGE=python:3.11-slim
ARG DEVICE=cpu

# wheels of your own: --build-context wheels=FOLDER
FROM scratch AS wheels

FROM ${BASE_IMAGE} AS compiler
# hadolint ignore=DL3008
RUN apt-get update -q \
 && apt-get install -y -q --no-install-recommends gcc libc6-dev libpython3-dev \
 && rm -rf /var/lib/apt/lists/*

FROM compiler AS build
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_CACHE_DIR=/cache PIP_CACHE_DIR=/cache
RUN --mount=type=cache,target=/cache python -m venv /venv && /venv/bin/pip install -q uv
ARG TORCH_SPEC=torch==2.13.0+cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# the heavy layer first: a change of the source costs seconds
RUN --mount=type=cache,target=/cache --mount=type=bind,from=wheels,target=/wheels \
    /venv/bin/uv pip install -q --python /venv/bin/python --find-links /wheels \
    ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} --index-strategy unsafe-best-match "${TORCH_SPEC}" triton
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY kernels kernels
COPY models models
COPY clients clients
RUN --mount=type=cache,target=/cache --mount=type=bind,from=wheels,target=/wheels \
    /venv/bin/uv pip install -q --python /venv/bin/python --find-links /wheels ".[postgres,otel]" \
 && /venv/bin/python -m trefoil_kernels.cpu.build \
 && /venv/bin/uv pip uninstall -q --python /venv/bin/python uv pip
# on a CPU Triton assembles nothing
ARG DEVICE
RUN if [ "${DEVICE}" = cpu ]; then rm -r /venv/lib/python3.*/site-packages/triton/backends/nvidia/bin; fi

# the CPU's kernels are compiled; on a GPU Triton compiles its own, and their launcher by gcc against Python.h
FROM ${BASE_IMAGE} AS cpu
FROM compiler AS cuda

# hadolint ignore=DL3006
FROM ${DEVICE}
RUN useradd --uid 10001 --create-home app && mkdir /data /models && chown 10001:10001 /data /models
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    TREFOIL_HOST=0.0.0.0 TREFOIL_DATA_DIR=/data TRITON_CACHE_DIR=/data/cache/triton HF_HOME=/models/hub
USER 10001:10001
WORKDIR /data
VOLUME ["/data", "/models"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=5 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["trefoil"]
CMD ["serve"]
