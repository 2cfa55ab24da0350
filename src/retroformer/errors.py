"""Every error a user can cause or meet, one sentence each.

RetroformerError              exit code 2 and one line on the terminal, no traceback
├── ConfigError               params.yaml or a flag: what was got, what is allowed
├── DataError                 a file: its name, the row or line, got and expected
│   ├── PinMismatch           a policy's hash is not the one that champion.json pins
│   └── ContractBroken        too much of what was read had to go to quarantine
├── EnvironmentFault          an environment that does not exist or broke its contract
├── PolicyError               a model, tokenizer or action that cannot be scored
└── TrainingStopped           a threshold of the diagnostics stopped a bad update
"""


class RetroformerError(Exception):
    """Base of everything that is told to the user as one sentence."""


class ConfigError(RetroformerError):
    """A parameter is misspelt or out of range."""


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
