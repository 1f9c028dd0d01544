"""What people give to commands that run something: addresses, folders, settings. Raises BadInput, in one line."""

from pathlib import Path

from pydantic import ValidationError

from idlewheel.errors import BadInput

__all__ = ["made_folder", "parse_address", "settings_faults"]


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise BadInput(f"{text!r} is no HOST:PORT")
    return host.strip("[]"), int(port)


def made_folder(path: Path) -> Path:
    """The folder, made if it was not there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{path} cannot be a folder: {error.strerror or error}") from None
    return path


def settings_faults(error: ValidationError) -> BadInput:
    """What is wrong with which settings."""
    faults = (f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors())
    return BadInput(f"the settings do not fit: {'; '.join(faults)}")
