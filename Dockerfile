# syntax=docker/dockerfile:1
#
# Two images from one file:
#   docker build --target service .                              api, file-validator, scheduler, registry, migrate
#   docker build --target engine .                               trainer and inference, PyTorch for the CPU
#   docker build --target engine --build-arg TORCH=cuda .        the same, PyTorch with CUDA
# What runs is chosen by the command, a Python module: `docker run IMAGE luthier_scheduler`.
# Packages are pinned with their hashes. pip compiles them and passes over files that are for another Python, as torch has
# some. The embedded servers and the demo's model are in neither image.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS wheels
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements/build.txt requirements/
RUN pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes -r requirements/build.txt
COPY libs libs
COPY services services
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels \
    ./libs/common ./libs/text ./libs/datachecks ./libs/graders \
    ./services/api ./services/file-validator ./services/scheduler ./services/registry ./services/trainer ./services/inference

FROM ${PYTHON} AS service-packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv /opt/luthier
ENV PATH=/opt/luthier/bin:${PATH}
COPY requirements/service.txt requirements/
RUN pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes -r requirements/service.txt
COPY --from=wheels /wheels /wheels
RUN pip install --no-cache-dir --no-deps --no-index \
    /wheels/luthier_common-*.whl /wheels/luthier_text-*.whl /wheels/luthier_datachecks-*.whl /wheels/luthier_graders-*.whl \
    /wheels/luthier_api-*.whl /wheels/luthier_file_validator-*.whl /wheels/luthier_scheduler-*.whl \
    /wheels/luthier_registry-*.whl

FROM service-packages AS engine-packages
# cpu or cuda. Torch stands outside the lock, so that an accelerator's build can be chosen. For the CPU an index must be
# named: the build that others offer is the one with CUDA, which comes from wherever pip looks unless one is named too.
ARG TORCH=cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH_CUDA_INDEX=
COPY requirements/engine.txt requirements/
RUN pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes -r requirements/engine.txt
RUN case "${TORCH}" in \
      cpu) index="${TORCH_CPU_INDEX}" ;; \
      cuda) index="${TORCH_CUDA_INDEX}" ;; \
      *) echo "TORCH is cpu or cuda, not ${TORCH}" >&2; exit 1 ;; \
    esac \
 && if [ -n "${index}" ]; then export PIP_INDEX_URL="${index}"; fi \
 && pip install --no-cache-dir --only-binary :all: torch==2.13.0
RUN pip install --no-cache-dir --no-deps --no-index /wheels/luthier_trainer-*.whl /wheels/luthier_inference-*.whl

# The user, the one directory that may be written, and what every service is told. Everything else may be read-only.
FROM ${PYTHON} AS ground
RUN groupadd --gid 10001 luthier \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/luthier --shell /usr/sbin/nologin luthier \
 && install -d -m 0700 -o luthier -g luthier /var/lib/luthier
ENV PATH=/opt/luthier/bin:${PATH} \
    HOME=/var/lib/luthier \
    XDG_CACHE_HOME=/var/lib/luthier/cache \
    HF_HOME=/var/lib/luthier/cache/huggingface \
    HF_HUB_OFFLINE=1 \
    TMPDIR=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LUTHIER_HOME=/var/lib/luthier \
    LUTHIER_LOG_FORMAT=json \
    LUTHIER_HEALTH_PORT=9000
WORKDIR /var/lib/luthier
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 CMD ["python", "-m", "luthier_common.kit.probe"]
ENTRYPOINT ["python", "-m"]

FROM ground AS engine
LABEL org.opencontainers.image.title="luthier-engine" org.opencontainers.image.licenses="Apache-2.0"
# NVML, by which the trainer finds its GPUs, is the driver's "utility".
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=engine-packages /opt/luthier /opt/luthier
CMD ["luthier_trainer"]

FROM ground AS service
LABEL org.opencontainers.image.title="luthier-service" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=service-packages /opt/luthier /opt/luthier
EXPOSE 8000
CMD ["luthier_api"]
