"""Writing by influxdb-client, to servers that have `/api/v2/write`: its synchronous WriteApi with prepared bytes.

Its batching mode loses data without a word, and its retries stop for good: neither is ever used.
"""

from influxdb_client.client.exceptions import InfluxDBError
from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.client.write_api import SYNCHRONOUS
from urllib3.exceptions import HTTPError

from coordinator.adapters.influx_server import InfluxAddress, ServerGone, failure

__all__ = ["V2Writer"]


class V2Writer:
    """May be called in several threads."""

    def __init__(self, address: InfluxAddress, timeout_s: float) -> None:
        self._database = address.database
        self._org = address.org or "-"
        self._client = InfluxDBClient(
            url=address.url,
            token=address.token or f"{address.user}:{address.password}",  # which is what 1.8 takes for a token
            org=self._org,
            timeout=int(timeout_s * 1000),
            retries=False,
        )
        self._api = self._client.write_api(write_options=SYNCHRONOUS)

    def write(self, body: bytes) -> None:
        """Send lines. Raises ServerGone, InfluxDenied, LinesRefused."""
        try:
            self._api.write(self._database, self._org, body)
        except InfluxDBError as error:
            answer = error.response
            if answer is None:
                raise ServerGone(str(error)) from error
            raise failure(answer.status, _text(answer.data)) from error
        except (HTTPError, UnicodeDecodeError) as error:  # the client decodes every answer as UTF-8
            raise ServerGone(str(error)) from error

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()  # type: ignore[no-untyped-call]


def _text(data: str | bytes) -> str:
    """An answer's body, which the client gives as it pleases."""
    return data if isinstance(data, str) else data.decode(errors="replace")
