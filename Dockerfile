# hybvit in a container; docs/install.md says how it is run.
#   CPU:         docker build -t hybvit .
#   NVIDIA GPU:  docker build -t hybvit:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=serve
ENV PIP_NO_CACHE_DIR=1 PATH=/opt/hybvit/bin:$PATH
RUN python -m venv /opt/hybvit
# Before the sources: a change of these needs no new torch.
RUN pip install --index-url "$TORCH_INDEX" "torch>=2.10" "torchvision>=0.25,<0.30"
COPY LICENSE README.md pyproject.toml /build/
COPY src /build/src
RUN pip install "/build[$EXTRAS]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/hybvit /opt/hybvit
RUN useradd --create-home --uid 1000 hybvit && install --directory --owner hybvit --group hybvit /work
ENV PATH=/opt/hybvit/bin:$PATH PYTHONUNBUFFERED=1
USER hybvit
WORKDIR /work
EXPOSE 7860
# Only the page has a state of health; other commands end by themselves.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD \
    tr '\0' '\n' < /proc/1/cmdline | grep -qx serve || exit 0; \
    python -c "import urllib.request as web; web.urlopen('http://127.0.0.1:7860/healthz', timeout=4)"
ENTRYPOINT ["hybvit"]
CMD ["--help"]
