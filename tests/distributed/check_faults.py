"""Run as several ranks: talk to each other until one is gone. check_faults.py FOLDER RANK_TIMEOUT"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from moviegen.parallel import heartbeat, mesh, sync  # noqa: E402


def main(folder: str, timeout: str) -> None:
    with heartbeat.beating(Path(folder) / "ranks", float(timeout)):
        world = mesh.setup({"data": mesh.ranks(), "zero": 1, "sp": 1}).world
        sync.barrier(world)
        print("talking", flush=True)
        while True:
            sync.barrier(world)
            time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
