"""Entry point of `fedctl`: answers `--version` at once, loads the command line for everything else.

Nothing but `sys` is imported here at the top: this module is on the path of every start.
"""

import sys


def main() -> None:
    """Run the command line of this process and exit with its code."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--version"]:
        from fedctl import __version__

        sys.stdout.write(f"fedctl {__version__}\n")
        return
    import gc

    gc.disable()  # importing makes no garbage worth looking for: 8 ms of CPU a start
    from fedctl.cli.app import run

    gc.enable()
    sys.exit(run(arguments))
