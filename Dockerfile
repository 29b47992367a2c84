# docker build -t sparse_attention . && docker run --rm --gpus all sparse_attention
# docker run --gpus all --name paper sparse_attention make paper SCALE=card    # docker start -a paper: goes on
# docker cp paper:/sparse_attention/runs .
#
# `--gpus` needs the NVIDIA container toolkit (and the driver, 525 or newer; for a V100 580 at most, the last that knows
# it) on the host; CUDA itself, and with it NVRTC 12, which compiles for a V100 or T4, comes with the wheels. Without a GPU
# the same image runs on the CPU.

FROM python:3.11-slim AS build
ARG TENSORFLOW=2.21.0
RUN apt-get update && apt-get install -y --no-install-recommends g++
WORKDIR /sparse_attention
COPY . .
RUN pip install --no-cache-dir . "tensorflow==$TENSORFLOW"
# The ops for x86-64-v2, v3 and v4; the one that fits is chosen when they load.
RUN python -m blocksparse.build --portable /opt/blocksparse

FROM python:3.11-slim
ARG TENSORFLOW=2.21.0
WORKDIR /sparse_attention
COPY . .
RUN pip install --no-cache-dir ".[gpu,examples]" "tensorflow==$TENSORFLOW"
# For `make paper`: make, and the data sets, so that a container needs no network.
RUN apt-get update && apt-get install -y --no-install-recommends make && python examples/fetch.py gcide --out data/gcide && \
    python examples/fetch.py fashion --out data/fashion && rm -rf /var/lib/apt/lists/*
# The Makefile's environment is the image's Python: nothing is installed when a container starts.
RUN mkdir -p .venv/bin && printf '#!/bin/sh\nexec python "$@"\n' > .venv/bin/python && chmod +x .venv/bin/python && \
    touch .venv/examples.installed
COPY --from=build /opt/blocksparse /opt/blocksparse
ENV BLOCKSPARSE_PREBUILT=/opt/blocksparse
RUN useradd --create-home user && mkdir runs && chown user runs
USER user
CMD ["python", "attention.py", "fp16"]
