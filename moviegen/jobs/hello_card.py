"""The first thing to run on a card: checks it and what it needs, and says what to mend."""

import os

from moviegen.errors import ConfigError
from moviegen.parallel import card
from moviegen.runner import Run
from moviegen.storage import files

ENVIRONMENT = ("ASCEND", "HCCL", "MS_", "GLOG", "LD_LIBRARY_PATH", "PYTHONPATH")


def run(run: Run) -> dict[str, float]:
    """Runs every check of `parallel/card.py`, prints a line for each, and leaves `hello_card.json`, to be sent to us.

    On several ranks each checks its own card; rank 0 tells of all. Raises ConfigError where a check failed on any.
    """
    world, path = run.mesh.world, run.workdir / "hello_card.json"
    results = card.run(run.mesh, run.workdir)
    failing = card.failing(results, world)
    for name, outcome, found, mend in results:
        where = f" (ranks {', '.join(map(str, failing[name]))})" if world.size > 1 and name in failing else ""
        print(f"{'failed' if where else outcome:8} {name:14} {found}{where}", flush=True)
        if outcome == "failed":
            print(f"{'':8} {'':14} -> {mend}", flush=True)
    if world.rank == 0:
        said = {key: value for key, value in sorted(os.environ.items()) if key.startswith(ENVIRONMENT)}
        checks = [result._asdict() for result in results]
        files.write_json({"checks": checks, "failing_ranks": failing, "environment": said}, path)
        print(f"hello_card: all of it is in {path}", flush=True)
    if failing:
        raise ConfigError(f"hello_card: failed: {', '.join(failing)}; what to do about each is said above")
    return {outcome: sum(r.outcome == outcome for r in results) for outcome in ("ok", "skipped")}
