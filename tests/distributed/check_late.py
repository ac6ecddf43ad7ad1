"""Run as two ranks: one comes SECONDS late, to files or to a collective. check_late.py FOLDER SECONDS wait|barrier RANK"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from moviegen.parallel import heartbeat, mesh, sync  # noqa: E402


def main(folder: str, seconds: str, how: str, late: str) -> None:
    with heartbeat.beating(Path(folder) / "ranks", 300.0):
        world = mesh.setup({"data": 2, "zero": 1, "sp": 1}).world
        sync.barrier(world)
        if world.rank == int(late):
            time.sleep(float(seconds))
        getattr(sync, how)(world)
        sync.barrier(world)
        print("met", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
