"""Every error a user can cause or meet, one sentence each.

RetroformerError              exit code 2 and one line on the terminal, no traceback
├── ConfigError               params.yaml or a flag: what was got, what is allowed
├── Busy                      another run of rounds is under way in this project
├── DataError                 a file: its name, the row or line, got and expected
│   ├── PinMismatch           a policy's hash is not the one that champion.json pins
│   └── ContractBroken        too much of what was read had to go to quarantine
├── EnvironmentFault          an environment that does not exist or broke its contract
├── PolicyError               a model, tokenizer or action that cannot be scored
└── TrainingStopped           a threshold of the diagnostics stopped a bad update
"""

import errno

USER_ERRNOS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would grow beyond the allowed size",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
}
# Libraries written in other languages report a full disk in words of their own, without an errno.
USER_FAULTS = ("no space left on device", "disk is full", "file too large", "disk quota exceeded", "permission denied")


class RetroformerError(Exception):
    """Base of everything that is told to the user as one sentence."""


class ConfigError(RetroformerError):
    """A parameter is misspelt or out of range."""


class Busy(RetroformerError):
    """Another run of rounds is under way in this project."""


class DataError(RetroformerError):
    """A file is missing, damaged or not what it should be."""


class PinMismatch(DataError):
    """The content of a pinned policy is not what the pin says."""


class ContractBroken(DataError):
    """The share of quarantined trajectories is above the stated limit."""


class EnvironmentFault(RetroformerError):
    """An environment is unknown, cannot start, or broke the protocol."""


class PolicyError(RetroformerError):
    """The policy cannot score or choose an action."""


class TrainingStopped(RetroformerError):
    """Diagnostics passed a threshold and no checkpoint is worth keeping."""


def user_fault(error: BaseException) -> str | None:
    """One line for what is not this program's fault, None for what is."""
    if isinstance(error, RetroformerError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in USER_ERRNOS:
        place = f": {error.filename}" if error.filename else ""
        return f"{USER_ERRNOS[error.errno]}{place}"
    words = str(error).lower()
    if isinstance(error, Exception) and any(fault in words for fault in USER_FAULTS):
        return " ".join(str(error).split())
    return None
