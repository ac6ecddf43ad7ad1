"""Run as two ranks: what comes to one alone, a gradient that is not finite, a signal, inputs that fail, both must heed.

check_stops.py FOLDER
"""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402

from moviegen.errors import DataError, Stopped  # noqa: E402
from moviegen.nn import backend  # noqa: E402
from moviegen.parallel import mesh as meshes, sync  # noqa: E402
from moviegen.runner import Run  # noqa: E402
from moviegen.training import loop, state as states  # noqa: E402
from tests.training.test_loop import Stub, settings  # noqa: E402


class Uneven(Stub):
    def __init__(self, layout):
        super().__init__()
        self.layout = layout

    def first_state(self):
        return states.fresh({"w": self.layout.place("w", np.ones(4, np.float32))}, self.layout)

    def micro_batches(self, step):
        yield step

    def loss_and_grads(self, params, inputs, step):
        rank = self.layout.mesh.world.rank
        if (rank, step) == (0, 4):
            signal.raise_signal(signal.SIGTERM)
        slope = params["w"] - step
        return {"loss": backend.tensor(np.float32(step))}, {"w": slope / 0.0 if (rank, step) == (1, 2) else slope}


class Torn(Uneven):
    """One rank alone cannot make the inputs of step 2, ahead of it."""

    def micro_batches(self, step):
        if (self.layout.mesh.world.rank, step) == (1, 2):
            raise DataError("b.mp4: damaged")
        yield step


def main(folder: str) -> None:
    meshes.setup({"data": meshes.ranks(), "zero": 1, "sp": 1})
    for axis, stage in (("data", 0), ("zero", 3)):
        mesh = meshes.make(dict.fromkeys(meshes.AXES, 1) | {axis: 2}, range(2))
        stub = Uneven(states.Layout({"w": (4,)}, mesh, stage))
        try:
            loop.train(Run(settings(checkpoint_every=100), Path(folder) / axis, mesh), stub.task())
        except Stopped as stopped:
            assert stopped.code == 143
        else:
            raise AssertionError(f"rank {mesh.world.rank} went on")
    stub = Torn(states.Layout({"w": (4,)}, mesh, stage))
    config = settings(checkpoint_every=100)
    config.data = dict(workers=1, prefetch=2)
    try:
        loop.train(Run(config, Path(folder) / "torn", mesh), stub.task())
    except DataError as error:
        print(f"ends: {error}")
    if mesh.world.rank == 1:
        sync.wait(mesh.world)  # in a run the end of this rank ends the other, which waits


if __name__ == "__main__":
    main(*sys.argv[1:])
