"""What a training run holds on this rank: weights, their average and the optimizer's moments, sharded as ZeRO says."""

import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen import arraystore, backend, checkpoint, optim, sharding
from moviegen import mesh as meshes
from moviegen.mesh import ALONE, Group, Mesh

Tree = dict[str, Any]


class Layout(NamedTuple):
    """Which shapes the whole parameters have, on which mesh and at which ZeRO stage they are sharded."""

    shapes: Mapping[str, tuple[int, ...]]
    mesh: Mesh
    zero_stage: int

    @property
    def shard(self) -> Group:
        """The ranks that share one copy of the state."""
        return self.mesh.shard if self.zero_stage else ALONE

    def place(self, path: str, array: np.ndarray) -> Any:
        """This rank's shard of a whole array."""
        return backend.tensor(sharding.cut(array, self.shard))

    def model(self, shards: Tree) -> Tree:
        """Weights that the model can compute with: the shards themselves at stage 3, else gathered."""
        if self.shard.size == 1 or self.zero_stage == 3:
            return shards
        return {path: sharding.whole(self.shard, tuple(self.shapes[path]))(value) for path, value in shards.items()}


class State(NamedTuple):
    """Weights as the model computes with them, the same as float32 shards, their average, and moments {"m", "v"}."""

    params: Tree
    master: Tree
    average: Tree
    moments: dict[str, Tree]


def fresh(master: Tree, layout: Layout) -> State:
    """The state of step 0, given this rank's shards of the weights."""
    average = backend.to_tensors({path: array.copy() for path, array in backend.to_numpy(master).items()})
    return State(layout.model(master), master, average, optim.init_state(master))


def restore(folder: Path, step: int, layout: Layout) -> tuple[State, dict]:
    """The state of a checkpoint, written under whatever mesh, and its meta. Reads this rank's slices alone."""
    trees, meta = checkpoint.load(folder, step, where=lambda shape: sharding.bounds(shape, layout.shard))
    if layout.mesh.world.rank == 0:
        print(f"continuing from step {step} in {folder}", flush=True)
    trees = {
        tree: {
            path: backend.tensor(sharding.pad(own, layout.shapes[path], layout.shard)) for path, own in values.items()
        }
        for tree, values in trees.items()
    }
    moments = {name: trees[f"opt/{name}"] for name in "mv"}
    return State(layout.model(trees["params"]), trees["params"], trees["ema"], moments), meta


def update(state: State, grads: Tree, step: int, lr: float, config: Any, layout: Layout) -> float:
    """One optimizer step in place; returns the global norm of the gradients, which come as the model's step gives them."""
    shard = layout.shard
    if layout.zero_stage == 1 and shard.size > 1:
        grads = sharding.own(grads, shard)
    norm = optim.global_norm(grads, shard)
    optim.adamw_update(state.master, grads, state.moments, step, lr, config.optim, norm)
    if config.ema.decay:
        # An average over few steps weighs the random start too much: the decay grows to its value.
        optim.ema_update(state.average, state.master, min(config.ema.decay, (1 + step) / (10 + step)))
    if state.params is not state.master:
        sharding.refresh(state.params, state.master, shard)
    return norm


def save(folder: Path, step: int, state: State, meta: dict, config: Any, layout: Layout) -> Future | None:
    """Copies this rank's shards and writes them while training goes on; of several copies of the state, one is written."""
    # New for every attempt and the same on every rank.
    token = meshes.agree(int(time.time()) % 10_000_000, layout.mesh.world)
    if layout.mesh.world.rank >= layout.shard.size:
        return None
    trees = {"params": state.master, "opt/m": state.moments["m"], "opt/v": state.moments["v"]}
    trees["ema"] = state.average if config.ema.decay else state.master

    def part(path, value):
        return sharding.part(tuple(layout.shapes[path]), np.array(arraystore.to_numpy(path, value)), layout.shard)

    parts = {tree: {path: part(path, value) for path, value in values.items()} for tree, values in trees.items()}
    keep = config.train.keep_checkpoints
    return checkpoint.save_in_background(folder, step, parts, meta, keep, layout.shard, str(token))
