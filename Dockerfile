# The studio for NVIDIA GPUs; PyTorch's packages bring CUDA, so the host needs only a driver and the container toolkit.
#
#   docker build -t lora-studio .
#   docker run --gpus all -p 127.0.0.1:7860:7860 -v lora-studio:/workspace lora-studio
#
# The password for http://127.0.0.1:7860 is in the log of the container; -e LORA_STUDIO_AUTH=USER:PASSWORD sets it.
FROM python:3.12-slim

RUN useradd --create-home --uid 1000 studio && install --directory --owner=studio /workspace

WORKDIR /app
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY . ./

USER studio
ENV LORA_STUDIO_HOME=/workspace HF_HOME=/workspace/huggingface PYTHONUNBUFFERED=1
VOLUME /workspace
EXPOSE 7860
HEALTHCHECK --start-period=60s --timeout=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/', timeout=30)"]
ENTRYPOINT ["python", "app.py", "--host", "0.0.0.0", "--port", "7860"]
