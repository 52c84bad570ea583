# For a CPU, and for a GPU of NVIDIA (with the NVIDIA Container Toolkit on the host):
#
#     docker build -t diffunet .
#     docker build -t diffunet:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
#
# The page; open http://localhost:8765/?token=... with the token that is printed. Of another machine the address begins with
# the number of this one (http://192.168.1.7:8765/...), since the page answers to no names that it does not know:
#
#     docker run --rm --init -p 8765:8765 diffunet
#
# Every command, on files of the folder where you are, which is /data in the container, with your own rights to them:
#
#     docker run --rm --init --user "$(id -u):$(id -g)" -v "$PWD:/data" diffunet sample emoji --num 1 --out e.png
#     docker run --rm --init --user "$(id -u):$(id -g)" -v "$PWD:/data" --gpus all --shm-size 1g diffunet:cuda \
#         train photos --out runs/photos
#
# There is no HEALTHCHECK, which would call a container that trains unhealthy. For the page:
#     --health-cmd 'python -c "import urllib.request as u; u.urlopen(\"http://127.0.0.1:8765/health\")"'
FROM python:3.12-slim

# By these a run builds its kernels: g++ those for a CPU, and Triton those for a GPU.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

# A user that is not root. By --user it may be any other, who then needs a home, and a name for torch's caches.
ENV HOME=/home/diffunet USER=diffunet
RUN useradd --no-log-init --create-home --uid 1000 diffunet \
    && mkdir /data && chown diffunet:diffunet /data && chmod 1777 "$HOME"

# Before the package, so that a change of it installs torch no second time.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# hadolint ignore=DL3013
RUN pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"

COPY . /src
RUN pip install --no-cache-dir "/src[web,fid,onnx,parquet,tensorboard]"

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility PYTHONUNBUFFERED=1
USER 1000
WORKDIR /data
VOLUME /data
EXPOSE 8765
ENTRYPOINT ["diffunet"]
CMD ["web", "emoji", "--host", "0.0.0.0", "--port", "8765"]
