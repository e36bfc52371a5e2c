# diver-trt with TensorRT-RTX, for GeForce and RTX cards; docs/platforms.md shows how it is run:
#   docker build --file docker/rtx.Dockerfile --tag diver-trt:rtx .
FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS python
# Ubuntu keeps only the newest version of a package, so a pinned one is soon not found.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

FROM python AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY diver_trt/ diver_trt/
COPY engines/digits/ engines/digits/
COPY examples/digits/distilled/ipc1/ examples/digits/distilled/ipc1/
# ONNX Runtime too: an image that overflows in fp16 is tried again in fp32 there.
RUN python3 -m venv /opt/diver-trt \
    && /opt/diver-trt/bin/pip install --no-cache-dir --constraint constraints.txt '.[rtx,cpu]'

FROM python
COPY --from=build /opt/diver-trt /opt/diver-trt
# Ubuntu's image has a user of this number, `ubuntu`.
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["/opt/diver-trt/bin/diver-trt"]
CMD ["--help"]
