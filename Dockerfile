# rlsmooth in a container:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=... -t rlsmooth .
#   docker run --rm -v "$PWD/logs:/work/logs" rlsmooth bc --env CartPole-v1
# The argument names an index with CPU builds of torch (see PyTorch's site); without it torch brings gigabytes of CUDA.
FROM python:3.12-slim

ARG PIP_EXTRA_INDEX_URL=
COPY . /source
RUN pip install --no-cache-dir --constraint /source/constraints.txt "$(grep '^torch==' /source/constraints.txt)" \
    && pip install --no-cache-dir --constraint /source/constraints.txt '/source[contrib]' \
    && rm -rf /source

RUN useradd --create-home user && mkdir --parents /work/logs && chown --recursive user /work
USER user
WORKDIR /work
ENTRYPOINT ["rlsmooth"]
CMD ["--help"]
