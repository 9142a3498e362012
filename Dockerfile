# One image, three commands: `serve`, `worker` and the shell's. Which build of torch it holds is said by TORCH_SPEC and, where
# that build lies elsewhere than on the default index, TORCH_INDEX.
ARG BASE_IMAGE=python:3.11-slim

# wheels of your own: --build-context wheels=FOLDER
FROM scratch AS wheels

FROM ${BASE_IMAGE} AS base
# the CPU kernels and Triton's launcher are compiled at first use, against Python.h
RUN apt-get update -q \
 && apt-get install -y -q --no-install-recommends gcc g++ libc6-dev libpython3-dev \
 && rm -rf /var/lib/apt/lists/*

FROM base AS build
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_CACHE_DIR=/cache PIP_CACHE_DIR=/cache
RUN --mount=type=cache,target=/cache python -m venv /venv && /venv/bin/pip install -q uv
ARG TORCH_SPEC=torch==2.13.0
ARG TORCH_INDEX=
# the heavy layer first: a change of the source costs seconds
RUN --mount=type=cache,target=/cache --mount=type=bind,from=wheels,target=/wheels \
    /venv/bin/uv pip install -q --python /venv/bin/python --find-links /wheels \
    ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} --index-strategy unsafe-best-match "${TORCH_SPEC}"
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY kernels kernels
COPY models models
COPY clients clients
RUN --mount=type=cache,target=/cache --mount=type=bind,from=wheels,target=/wheels \
    /venv/bin/uv pip install -q --python /venv/bin/python --find-links /wheels ".[postgres,otel]" \
 && /venv/bin/uv pip uninstall -q --python /venv/bin/python uv

FROM base
RUN useradd --uid 10001 --create-home app && mkdir /data /models && chown 10001:10001 /data /models
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    TREFOIL_HOST=0.0.0.0 TREFOIL_DATA_DIR=/data XDG_CACHE_HOME=/data/cache \
    TRITON_CACHE_DIR=/data/cache/triton HF_HOME=/models/hub
USER 10001:10001
WORKDIR /data
VOLUME ["/data", "/models"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=5 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["trefoil"]
CMD ["serve"]
