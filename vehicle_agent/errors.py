"""What ends an agent or one of its errands, as a small tree. Refusals to the coordinator are messages, not errors."""

__all__ = ["AgentError", "BadTrace", "BlobUnavailable", "IdentityTaken"]


class AgentError(Exception):
    """Anything that the agent raises itself."""


class BadTrace(AgentError):
    """A recorded trace can't be played; the text says where and why."""


class IdentityTaken(AgentError):
    """Another client connected under this vehicle's id: the identity may be cloned. Reconnecting would only fight."""


class BlobUnavailable(AgentError):
    """A model or inputs could not be fetched, or are not what their digest says; or outputs could not be stored."""
