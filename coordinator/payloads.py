"""Arrays out of the payloads of results, as messages bring them and the ledger keeps them. Pure."""

import msgspec

from fleet_wire.tensors import Array, Tensor, decode_tensors

__all__ = ["decode_payload"]

_decode = msgspec.msgpack.Decoder(list[Tensor]).decode


def decode_payload(payload: bytes) -> dict[str, Array]:
    """Arrays of a payload: views of it, where that can be."""
    return decode_tensors(_decode(payload))
