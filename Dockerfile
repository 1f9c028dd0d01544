# One image for every part; EXTRAS says which dependencies it holds: agent, coordinator, simulator or all.
#   docker build --build-arg EXTRAS=agent -t idlewheel-agent .
FROM python:3.12-slim AS build
ARG EXTRAS=all
WORKDIR /src
COPY requirements/demo.lock requirements/demo.lock
COPY pyproject.toml README.md LICENSE ./
COPY fleet_wire fleet_wire
COPY fleet_link fleet_link
COPY vehicle_agent vehicle_agent
COPY coordinator coordinator
COPY simulator simulator
COPY idlewheel idlewheel
# The lock holds the versions of every extra; as constraints, without their hashes, it installs only what EXTRAS needs.
RUN python -m venv /opt/idlewheel \
    && sed -n 's/ \\$//; /^[a-z]/p' requirements/demo.lock > constraints.txt \
    && /opt/idlewheel/bin/pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

FROM python:3.12-slim
RUN useradd --system --uid 10001 --create-home idlewheel \
    && install -d -o idlewheel -g idlewheel /var/lib/idlewheel
COPY --from=build /opt/idlewheel /opt/idlewheel
ENV PATH=/opt/idlewheel/bin:$PATH PYTHONUNBUFFERED=1
USER idlewheel
WORKDIR /var/lib/idlewheel
VOLUME /var/lib/idlewheel
ENV IDLEWHEEL_COORDINATOR_DATA=/var/lib/idlewheel IDLEWHEEL_COORDINATOR_HTTP_PORT=8470
EXPOSE 8470
# Of the coordinator; a service that runs something else overrides or disables it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['IDLEWHEEL_COORDINATOR_HTTP_PORT']}/healthz\", timeout=4)"]
CMD ["python", "-m", "coordinator.daemon"]
