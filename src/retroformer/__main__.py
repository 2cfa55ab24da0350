"""``python -m retroformer`` is ``retroformer``."""

import sys


def main() -> int:
    """The entry point of both. Imports the command line itself, so that an interrupt meanwhile is one line too."""
    try:
        from retroformer.preloaded import command

        code = command(sys.argv[1:])
        if code is not None:
            return code
        from retroformer.cli import main as command_line
    except KeyboardInterrupt:
        print("\nretroformer: interrupted", file=sys.stderr)
        return 130
    return command_line()


if __name__ == "__main__":
    sys.exit(main())
