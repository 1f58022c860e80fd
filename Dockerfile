# One image for the worker and the web application. compose.yaml has the command of each.
FROM python:3.13-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

RUN useradd --create-home --uid 10001 tandem
WORKDIR /app

# An editable installation, so that `db` and `worker` exist once, beside your `tasks`.
COPY pyproject.toml README.md LICENSE ./
COPY db db
COPY worker worker
RUN pip install --no-cache-dir --editable '.[web]'

COPY tasks tasks
COPY examples examples

USER tandem
# Linux drops a signal that the first process of a container does not handle yet. A blocked signal waits until the process does.
CMD ["env", "--block-signal=INT,TERM", "arq", "worker.Settings"]
