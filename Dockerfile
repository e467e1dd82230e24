# The image of the migrate, code-server, webserver and daemon services of docker-compose.yml.

FROM python:3.11-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
WORKDIR /app
COPY requirements.lock ./
RUN /opt/venv/bin/pip install --require-hashes -r requirements.lock
# FinBERT's: docker build --build-arg TORCH=2.13.0 .
ARG TORCH=
RUN if [ -n "$TORCH" ]; then /opt/venv/bin/pip install "torch==$TORCH"; fi
# Kubernetes' (docs/how-to/scale-out.md): docker build --build-arg EXTRAS=dagster-k8s==0.29.27 .
ARG EXTRAS=
RUN if [ -n "$EXTRAS" ]; then /opt/venv/bin/pip install $EXTRAS; fi
COPY pyproject.toml README.md ./
COPY feature_pipeline feature_pipeline
RUN /opt/venv/bin/pip install --no-deps --no-build-isolation -e .

FROM python:3.11-slim
RUN useradd --system --uid 10001 --create-home feature_pipeline \
    && install -d -o feature_pipeline -g feature_pipeline /opt/dagster /opt/dagster/storage
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
COPY sql /app/sql
COPY dagster.yaml workspace.yaml /app/
COPY --chown=feature_pipeline:feature_pipeline dagster.yaml /opt/dagster/dagster.yaml
ENV PATH=/opt/venv/bin:$PATH DAGSTER_HOME=/opt/dagster PYTHONUNBUFFERED=1
WORKDIR /app
USER feature_pipeline
CMD ["feature-pipeline", "--help"]
