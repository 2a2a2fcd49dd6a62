# The demo, with the versions of uv.lock and as a user without rights; docs/howto/docker.md says how to use it.
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir uv \
    && useradd --create-home cvit \
    && install --directory --owner cvit --group cvit /home/cvit/checkout
# The folder is made above, since WORKDIR would make it root's.
USER cvit
WORKDIR /home/cvit/checkout
ENV PATH=/home/cvit/checkout/.venv/bin:$PATH \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PYTHON_DOWNLOADS=never

# The dependencies, gigabytes, are a layer of their own that a change of the code does not touch.
COPY --chown=cvit:cvit pyproject.toml uv.lock ./
RUN uv sync --frozen --no-install-project

COPY --chown=cvit:cvit . .
# `make` takes the environment as it is; a volume on runs/ gets its owner from here.
RUN uv sync --frozen \
    && python -m cvit.native \
    && python -m cvit.engine.tracking.prepared_store \
    && touch .venv/.installed \
    && mkdir runs

CMD ["make", "demo"]
