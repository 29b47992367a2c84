# docker build -t sparse_attention . && docker run --rm --gpus all sparse_attention
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
RUN pip install --no-cache-dir ".[gpu]" "tensorflow==$TENSORFLOW"
COPY --from=build /opt/blocksparse /opt/blocksparse
ENV BLOCKSPARSE_PREBUILT=/opt/blocksparse
RUN useradd --create-home user
USER user
CMD ["python", "attention.py", "fp16"]
