"""Becomes the training of one run: `python -m services.trainer.launch RUN_DIR NUM_PROCESSES PARENT_PID`.

One process is started directly; several under torchrun. Across machines, start `services.trainer.train RUN_DIR` with
torchrun yourself.
"""

import os
import sys

from services.trainer.parentage import die_with_parent

TRAIN = "services.trainer.train"


def command(run_dir: str, num_processes: int) -> list[str]:
    if num_processes == 1:
        return ["-m", TRAIN, run_dir]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    return [*torchrun, "--max-restarts=0", "-m", TRAIN, run_dir]


def main() -> None:
    run_dir, num_processes, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    die_with_parent(parent)
    # Threads that spin while they wait halve the speed of whoever shares the machine (the engine, on CPU).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.execv(sys.executable, [sys.executable, *command(run_dir, num_processes)])


if __name__ == "__main__":
    main()
