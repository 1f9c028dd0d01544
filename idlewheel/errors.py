"""What can go wrong for somebody who uses the client or the command line, each with whose turn it is to act."""

__all__ = ["BadInput", "IdlewheelError", "JobFailed", "Refused", "Unreachable"]


class IdlewheelError(Exception):
    """Base of all errors of the client; its text is one line for a person."""


class BadInput(IdlewheelError, ValueError):
    """Yours: a file, an array or an option that cannot be used. Nothing was sent."""


class Refused(IdlewheelError):
    """Yours: the coordinator does not accept the request; `code` is for programs, `detail` for people."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class Unreachable(IdlewheelError):
    """The coordinator does not answer, or cannot work at this moment."""


class JobFailed(IdlewheelError):
    """The job ended without all its rows; `state` is failed or cancelled."""

    def __init__(self, job: str, state: str, detail: str | None) -> None:
        ended = f"job {job} {'failed' if state == 'failed' else f'was {state}'}"
        super().__init__(f"{ended}: {detail}" if detail else ended)
        self.job = job
        self.state = state
        self.detail = detail
