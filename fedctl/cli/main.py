"""Entry point of `fedctl`: answers `--version` and a TAB at once, loads the command line for all else.

Only what Python itself has loaded is imported here at the top: this module is on the path of every start.
"""

import io
import os
import sys


def main() -> None:
    """Run the command line of this process and exit with its code."""
    _repair_streams()
    arguments = sys.argv[1:]
    if arguments[:1] == ["--version"] and _say_version():
        return
    if arguments[:1] == ["__complete"]:  # a TAB, which nobody wants to wait for
        from fedctl.cli.complete import answer

        answer(arguments[1:])
        return
    import gc
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: exit code 130, resumable
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


def _say_version() -> bool:
    """Write the version; False when that fails, so that the command line says why."""
    from fedctl import __version__

    try:
        os.write(1, f"fedctl {__version__}\n".encode())
    except OSError:
        return False
    return True


def _repair_streams() -> None:
    """Give every standard stream a file, and a way to show any character.

    Started with a closed one (`2>&-`), Python has None in its place, and the next file that is opened,
    the database for one, would get its number and whatever is printed there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their numbers
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - for good
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
