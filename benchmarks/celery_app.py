"""The Celery application that `benchmarks.peers` measures: Redis, late acknowledgement, results kept in Redis."""

import os

from celery import Celery

from benchmarks import work

app = Celery("benchmarks", broker=os.environ["IDLEWHEEL_BENCH_REDIS"], backend=os.environ["IDLEWHEEL_BENCH_REDIS"])
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=64)


@app.task(name="echo")  # type: ignore[untyped-decorator]
def echo(item: bytes) -> bytes:
    return work.echo(item)
