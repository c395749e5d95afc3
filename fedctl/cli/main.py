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

    # Most of a short command's objects come from imports and live until its end. Looking for garbage
    # among them, while importing and again at exit, would take a fifth of its CPU time.
    gc.set_threshold(50_000)
    try:
        from fedctl.cli.app import run

        code = run(arguments)
    except KeyboardInterrupt:  # before the command line was there to say anything
        code = 130
    gc.freeze()
    sys.exit(code)
