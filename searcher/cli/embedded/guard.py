"""command -> the same command, which the kernel ends when the process that started it dies, however it dies.

    python guard.py SIGNAL COMMAND ...

Run by its path with a bare interpreter: it imports nothing of this package, so it costs a program some 20 ms at start.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PARENT = "SEARCHER_GUARD_PARENT"
"""Environment: the process id that the starter of a guarded command has, where it knows it beforehand."""


def main() -> None:
    death_signal, command = signal.Signals[sys.argv[1]], sys.argv[2:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(death_signal)) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died before the kernel was told to watch it.
    parent = os.environ.pop(PARENT, None)
    if parent is not None and int(parent) != os.getppid():
        sys.exit(f"process {parent}, which started this, is gone")
    os.environ[PARENT] = str(os.getpid())
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
