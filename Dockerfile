# syntax-free on purpose: builds with any docker, no frontend to fetch.
# BASE is any image with python >= 3.11; the first stage also needs its venv and pip.
ARG BASE=docker.io/library/python:3.12-slim

FROM ${BASE} AS build
# An index, certificates or proxies of your own: --build-arg PIP_INDEX_URL=… and the like.
ARG PIP_INDEX_URL
ARG PIP_CERT
ARG HTTPS_PROXY
# Without an index: unpack the wheelhouse of `make packages` here (tar -xf dist/…-wheels-….tar), and
# build with --network none --build-arg PIP_NO_INDEX=1.
ARG PIP_NO_INDEX
# COPY fails if it finds nothing: README.md is there without wheels too.
COPY README.md wheel[s] /wheels/
ENV PIP_FIND_LINKS=/wheels
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY registry registry
COPY storage storage
COPY auth auth
COPY mayfly mayfly
RUN python3 -m venv /opt/mayfly \
 && /opt/mayfly/bin/pip install --no-cache-dir --no-compile '.[metrics,zstd]' \
 && /opt/mayfly/bin/python -m compileall -q /opt/mayfly/lib

FROM ${BASE}
COPY --from=build /opt/mayfly /opt/mayfly
# Official images of Python lack the compiled standard library (15 MB), and no start could keep it.
RUN /opt/mayfly/bin/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))' \
  | xargs /opt/mayfly/bin/python -m compileall -q -x '/(site-packages|tests?)/'
# The only places written to are these two volumes: the root filesystem may be read-only.
RUN mkdir -p /var/lib/mayfly /run/mayfly && chown 65532:65532 /var/lib/mayfly /run/mayfly
ENV PATH=/opt/mayfly/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    MAYFLY_ROOT=/var/lib/mayfly \
    MAYFLY_STATE_DIR=/var/lib/mayfly/state \
    MAYFLY_LISTEN=0.0.0.0:5000
USER 65532:65532
VOLUME ["/var/lib/mayfly", "/run/mayfly"]
EXPOSE 5000
ENTRYPOINT ["mayfly"]
CMD ["serve"]
