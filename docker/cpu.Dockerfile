# diver-trt on a CPU, with ONNX Runtime and without torch; docs/platforms.md shows how it is run:
#   docker build --file docker/cpu.Dockerfile --tag diver-trt:cpu .
FROM python:3.12.11-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY diver_trt/ diver_trt/
COPY engines/digits/ engines/digits/
COPY examples/digits/distilled/ipc1/ examples/digits/distilled/ipc1/
RUN python -m venv /opt/diver-trt \
    && /opt/diver-trt/bin/pip install --no-cache-dir --constraint constraints.txt '.[cpu]'

# The same image again, because the environment's interpreter is a link to it.
FROM python:3.12.11-slim-bookworm
COPY --from=build /opt/diver-trt /opt/diver-trt
RUN useradd --create-home --uid 1000 diver
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["/opt/diver-trt/bin/diver-trt"]
CMD ["--help"]
