"""The training state on this rank: weights, their exponential moving average (EMA) and moments, sharded by ZeRO stage."""

import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen.errors import DataError
from moviegen.nn import backend, dtypes
from moviegen.parallel import sharding, sync, zero
from moviegen.parallel.mesh import ALONE, Group, Mesh
from moviegen.storage import checkpoint
from moviegen.training import optim

Tree = dict[str, Any]


class Layout(NamedTuple):
    """Shapes of the whole parameters, and the mesh and ZeRO stage by which they are sharded.

    With `offload` the moments and the EMA are numpy arrays, in host memory.
    """

    shapes: Mapping[str, tuple[int, ...]]
    mesh: Mesh
    zero_stage: int
    offload: bool = False

    @property
    def shard(self) -> Group:
        """The ranks over which the state is sharded."""
        return self.mesh.shard if self.zero_stage else ALONE

    def place(self, path: str, array: np.ndarray) -> Any:
        """This rank's shard of a whole array."""
        return backend.tensor(sharding.cut(array, self.shard))

    def model(self, shards: Tree) -> Tree:
        """The parameters as the model's step takes them: shards at stage 3, else all-gathered."""
        return shards if self.zero_stage == 3 else self.whole(shards)

    def whole(self, shards: Tree) -> Tree:
        """All-gathers every parameter, on every rank: for models that are small beside a training step."""
        return zero.whole(self.shard, backend.to_tensors(shards), self.shapes)

    def keep(self, tree: dict[str, np.ndarray]) -> Tree:
        """Moments or EMA, in the memory where they are kept: the host's or the device's."""
        return tree if self.offload else backend.moved(tree)


class State(NamedTuple):
    """Parameters as the model's step takes them; the float32 master shards, their EMA, and the moments {"m", "v"}."""

    params: Tree
    master: Tree
    ema: Tree
    moments: dict[str, Tree]


def fresh(master: Tree, layout: Layout) -> State:
    """The state of step 0, given this rank's shards of the weights."""
    ema = {path: array.copy() for path, array in backend.to_numpy(master).items()}
    return State(layout.model(master), master, layout.keep(ema), optim.init_state(master, layout.offload))


def ema_weights(state: State, config: Any) -> Tree:
    """Shards of the weights to sample with: the EMA, or the master weights where `ema.decay` is 0."""
    return state.ema if config.ema.decay else state.master


def restore(folder: Path, step: int, layout: Layout) -> tuple[State, dict]:
    """The state and meta of a checkpoint, which any mesh may have written; reads this rank's slices alone."""
    trees, meta = _read(folder, step, layout)
    if layout.mesh.world.rank == 0:
        print(f"continuing from step {step} in {folder}", flush=True)
    master = backend.moved(trees["params"])
    moments = {name: layout.keep(trees[f"opt/{name}"]) for name in "mv"}
    return State(layout.model(master), master, layout.keep(trees["ema"]), moments), meta


def load_ema(folder: Path, layout: Layout) -> tuple[Tree, dict]:
    """The EMA weights of the newest checkpoint as the model's step takes them, and the checkpoint's meta."""
    trees, meta = _read(folder, None, layout, "^ema/")
    return layout.model(backend.moved(trees["ema"])), meta


def grown(folder: str | Path, layout: Layout, grow: Callable[[Tree], Tree]) -> State:
    """The state of step 0 with the EMA weights of a checkpoint folder; reads this rank's slices alone.

    Position tables are read whole and go through `grow`, since a larger table has other shards.
    """
    own = backend.moved(_read(folder, None, layout, "^ema/(?!position/)")[0]["ema"])
    tables = backend.to_numpy(grow(checkpoint.load(folder, select="^ema/position/")[0]["ema"]))
    return fresh(own | {path: layout.place(path, table) for path, table in tables.items()}, layout)


def _read(folder, step, layout, select=""):
    """This rank's shards of what `select` matches. DataError, before any is read, where another model was saved."""
    for tree, arrays in checkpoint.lazy(folder, step)[0].items():
        all_found = {path: array.shape for path, array in arrays.items()}
        want, found = (
            {path: tuple(shape) for path, shape in table.items() if re.search(select, f"{tree}/{path}")}
            for table in (layout.shapes, all_found)
        )
        wrong = sorted(path for path in want | found if want.get(path) != found.get(path))
        if wrong:
            raise DataError(
                f"{folder}: its {tree} is not of this model config: {', '.join(wrong[:5])} ({len(wrong)} differ; "
                f"{wrong[0]} is {found.get(wrong[0], 'missing')}, expected {want.get(wrong[0], 'nothing')})"
            )
    trees, meta = checkpoint.load(folder, step, select, where=lambda shape: sharding.bounds(shape, layout.shard))
    for tree, values in trees.items():  # one by one, so that no tree is in memory twice
        trees[tree] = {path: sharding.pad(values.pop(path), layout.shapes[path], layout.shard) for path in list(values)}
    return trees, meta


def update(
    state: State, grads: Tree, step: int, lr: float, config: Any, layout: Layout, starts: Mapping[str, int] = {}
) -> float:
    """One optimizer step in place; returns the global norm of the gradients, which come as the model's step gives them.

    `starts` ({prefix of paths: first step}) tells networks with optimizer steps of their own, such as a discriminator:
    they have their own global norm and clipping, and count their steps from the first one. Before it they stay as they
    are, and `grads` need not have them. The norm returned is that of all other gradients.
    """
    shard, norms = layout.shard, {}
    for prefix, start in {"": 0, **starts}.items():
        if step < start:
            continue
        done = step - start
        master, own = (
            {path: value for path, value in tree.items() if prefix == next(filter(path.startswith, starts), "")}
            for tree in (state.master, grads)
        )
        if layout.zero_stage == 1 and shard.size > 1:
            own = zero.own(own, shard)
        norm = norms[prefix] = optim.global_norm({path.removeprefix(prefix): g for path, g in own.items()}, shard)
        optim.adamw_update(master, own, state.moments, done, lr, config.optim, norm)
        if config.ema.decay:
            # An average over few steps weighs the random start too much: the decay grows to its value.
            optim.ema_update(state.ema, master, min(config.ema.decay, (1 + done) / (10 + done)))
        if state.params is not state.master:
            for path, value in layout.whole(master).items():
                state.params[path].assign_value(value)
    return norms[""]


def save(folder: Path, step: int, state: State, meta: dict, config: Any, layout: Layout) -> Future | None:
    """Copies this rank's shards and writes them in the background; the first replica of the state alone is written."""
    # New for every attempt and the same on every rank.
    token = sync.agree(int(time.time()) % 10_000_000, layout.mesh.world)
    if layout.mesh.world.rank >= layout.shard.size:
        return None
    trees = {"params": state.master, "opt/m": state.moments["m"], "opt/v": state.moments["v"]}
    trees["ema"] = ema_weights(state, config)

    def part(path, value):
        return sharding.part(tuple(layout.shapes[path]), np.array(dtypes.to_numpy(path, value)), layout.shard)

    parts = {tree: {path: part(path, value) for path, value in values.items()} for tree, values in trees.items()}
    keep = config.train.keep_checkpoints, config.train.keep_every, config.train.keep_best

    def work() -> None:
        checkpoint.save(folder, step, parts, meta, layout.shard.rank, layout.shard.size, str(token))
        if layout.shard.rank == 0:
            checkpoint.prune(folder, *keep)

    return checkpoint.in_background(work)
