"""`python -m benchmarks.mesh_memory`: memory of one rank, of training state and of activations, on meshes of 1, 2 and 4.

State: weights, gradients, moments and average of a model of many weights and few tokens, ZeRO stage 3. Activations: loss and
gradients at 14 336 tokens (256 frames at 256x448) of a model of few weights, the sequence over sp.
"""

import ctypes
import gc
import json
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

STATE = dict(hidden_size=768, num_layers=6, num_heads=8, ffn_size=3072, position_lengths=(1, 2, 2))
ACTIVATIONS = dict(hidden_size=128, num_layers=2, num_heads=4, ffn_size=512, position_lengths=(32, 16, 28))
MESHES = {"zero": "state", "sp": "activations"}


def main() -> None:
    from moviegen.parallel import launcher

    print(f"{'mesh':8} {'what':12} {'MB a rank':>10} {'of one rank':>12}")
    for axis, what in MESHES.items():
        alone = None
        for size in (1, 2, 4):
            with tempfile.TemporaryDirectory() as folder:
                if launcher.run([__file__, axis, str(size)], size, Path(folder)):
                    sys.exit((Path(folder) / "ranks" / "worker_0.log").read_text()[-2000:])
                logs = [log.read_text() for log in sorted((Path(folder) / "ranks").glob("worker_*.log"))]
            found = [json.loads(re.search(r"^measured (.*)$", log, re.MULTILINE)[1]) for log in logs]
            most = max(found)
            alone = alone or most
            print(f"{axis}={size:<3} {what:15} {most:10.0f} {most / alone:12.2f}", flush=True)


def measure(axis: str, size: int) -> float:
    """MB that this rank holds more than before anything was built: of state, or at the peak of a step that is compiled."""
    import numpy as np

    from experiments import common
    from moviegen.models.transformer import model as transformer, step as transformer_step
    from moviegen.nn import backend
    from moviegen.parallel import comm, mesh as meshes
    from moviegen.training import state as states

    mesh = meshes.setup(dict.fromkeys(meshes.AXES, 1) | {axis: size})
    cfg = common.transformer("tiny", **(STATE if axis == "zero" else ACTIVATIONS))
    layout = states.Layout(transformer.shapes(cfg), mesh, 3)
    backend.device()
    before = resident("VmRSS")
    state = states.fresh(transformer.init(cfg, 0, layout.place), layout)
    if axis == "zero":
        grads = {path: backend.tensor(np.zeros(value.shape, np.float32)) for path, value in state.params.items()}
        held = [*state.params.values(), *state.ema.values(), *grads.values()]
        held += [value for moment in state.moments.values() for value in moment.values()]
        for value in held:
            value.asnumpy()[...] += 0  # memory that was never written to is not there yet
        return resident("VmRSS") - before
    rng = np.random.default_rng(0)
    shape = (1, cfg.latent_channels, *(n * p for n, p in zip(cfg.position_lengths, cfg.patch_size, strict=True)))
    latents, noise = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
    text = {name: (rng.standard_normal((1, 32, d), dtype=np.float32), None) for name, d in cfg.text_dims.items()}

    exchange = comm.make(mesh, 3, transformer.shapes(cfg))

    def step():
        transformer_step.loss_and_grads(state.params, cfg, latents, noise, np.full(1, 0.5), text, exchange)[0].asnumpy()

    step()
    # What compiling took is given back, and forgotten as a peak.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    step()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """MB of this process's resident memory: now (VmRSS) or at its peak (VmHWM)."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        print("measured", json.dumps(measure(sys.argv[1], int(sys.argv[2]))), flush=True)
