"""The command line. A stage's flags and help come from its function (`stages`), the rest is in `commands`.

A flag overrides params.yaml and is checked by the same rules. What a user did wrong is one line on the terminal
and exit code 2, an interrupt is one line and 130; a traceback is always a defect of this program.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence

from retroformer.cli import commands, lineage, models
from retroformer.cli.stages import run_stage, summary
from retroformer.errors import ConfigError, user_fault
from retroformer.stages import STAGES

HELP = """\
Turn the runs that an agent has already made into a better agent, and know that it is better.

usage: retroformer COMMAND [flags]

The main path:
  make run          rounds through Prefect until three are closed, then the table
  dvc repro         one round up to its verdict; again, and nothing changes
  retroformer close register the challenger, append to the history, move the pins: the next round is open

Stages, in order; `dvc repro` runs them, `retroformer STAGE --help` lists their flags:
{stages}

Around them:
  close     close the round that `dvc repro` finished
  status    the table of closed rounds, and where to look
  models    the registered versions: list, show, compare, promote, roll back
  reproduce N   run a closed round again in a clone, and compare bit for bit
  recover   what killed commands left of the files of DVC and git, made good
  import    logs of agents that ran elsewhere, as trajectories
  export    trajectories in a format of exchange
  lineage VERSION    what is behind a version, back to the lines of logs; --trajectory ID: what learned from it
  forget    remove trajectories from the history for good, leave a tombstone, say what to run again
  off-policy    how much better a policy is than what made some logs, from the logs alone
  first-agent NAME   which scripted agent is the first champion, for environments of your own
  check-environment NAME    play an environment, package:task or an import path, and say what breaks its contract
"""

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "close": commands.close,
    "status": commands.status,
    "models": models.models,
    "reproduce": commands.reproduce,
    "recover": commands.recover,
    "import": commands.import_,
    "export": commands.export,
    "lineage": lineage.lineage,
    "forget": lineage.forget,
    "off-policy": commands.off_policy,
    "first-agent": commands.first_agent,
    "check-environment": commands.check_environment,
}


def dispatch(arguments: Sequence[str]) -> None:
    """Do what the command line says."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP.format(stages="\n".join(f"  {name:<9} {summary(name)}" for name in STAGES)), end="")
        return
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        from retroformer import __version__

        print(f"retroformer {__version__}")
    elif name in COMMANDS:
        COMMANDS[name](rest)
    elif name in STAGES:
        run_stage(name, rest)
    else:
        near = difflib.get_close_matches(name, [*STAGES, *COMMANDS], n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join([*STAGES, *COMMANDS])}"
        raise ConfigError(f"{name} is not a command; {hint}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0, 2 for what a user can mend, 130 for an interrupt."""
    from retroformer.journal import record_failure

    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else ""
    try:
        dispatch(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code, message = 130, "interrupted; what was finished is kept, run the same command again to go on"
        print(f"\nretroformer: {message}", file=sys.stderr)
    except BrokenPipeError:
        # The reader of `retroformer --help | head` left; nothing more can be said to it.
        sys.stderr.close()
        return 0
    except Exception as error:
        code, message = 1, f"{type(error).__name__}: {error}"
        told = user_fault(error)
        if told is None:
            record_failure(name, code, message)
            raise
        code, message = 2, told
        print(f"retroformer: error: {message}", file=sys.stderr)
    else:
        return 0
    record_failure(name, code, message)
    return code
