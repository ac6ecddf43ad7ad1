"""The training state on this rank: weights, their exponential moving average (EMA) and moments, sharded by ZeRO stage."""

import itertools
import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moviegen.errors import DataError
from moviegen.nn import backend, dtypes, kernels
from moviegen.parallel import sharding, sync, zero
from moviegen.parallel.mesh import ALONE, Group, Mesh
from moviegen.storage import arraystore, checkpoint, treestore
from moviegen.storage.trained import Trained
from moviegen.training import optim

Tree = dict[str, Any]


class Layout(NamedTuple):
    """Shapes of the whole parameters, and the mesh and ZeRO stage by which they are sharded.

    With `offload` the moments and the EMA are kept in host memory (`kernels.to_host`). Not `averaged`, there is no EMA.
    `dtypes` are those that parameters are computed with in, float32 where they name none.
    """

    shapes: Mapping[str, tuple[int, ...]]
    mesh: Mesh
    zero_stage: int
    offload: bool = False
    averaged: bool = True
    dtypes: Mapping[str, str] = {}

    @property
    def shard(self) -> Group:
        """The ranks over which the state is sharded."""
        return self.mesh.shard if self.zero_stage else ALONE

    def place(self, path: str, array: np.ndarray) -> Any:
        """This rank's shard of a whole array."""
        return backend.tensor(sharding.cut(array, self.shard))

    def model(self, shards: Tree) -> Tree:
        """The parameters as the model's step takes them: shards at stage 3 on several ranks, else whole and in `dtypes`.

        What is whole and in its dtype already is not copied.
        """
        shards = backend.to_tensors(shards)
        sharded = self.zero_stage == 3 and self.shard.size > 1
        return shards if sharded else zero.whole(self.shard, shards, self.shapes, self.dtypes)

    def pieces(self, paths: Iterable[str]) -> list[tuple[str, ...]]:
        """Paths in groups to give to `model` one after the other, so that nothing is in memory in two dtypes at once."""
        ordered = sorted(paths, key=lambda path: (self.dtypes.get(path, "float32"), path))  # the same on every rank
        return sharding.buckets((path, self.shapes[path]) for path in ordered)

    def whole(self, shards: Tree) -> Tree:
        """All-gathers every parameter, on every rank: for models that are small beside a training step."""
        return zero.whole(self.shard, backend.to_tensors(shards), self.shapes)

    def keep(self, tree: dict[str, np.ndarray]) -> Tree:
        """Moments or EMA, in the memory where they are kept: the host's or the device's."""
        return {path: kernels.to_host(tree.pop(path)) for path in list(tree)} if self.offload else backend.moved(tree)


class State(NamedTuple):
    """Parameters as `Layout.model` makes them of the master; float32 master shards, their EMA (or {}), moments {"m", "v"}."""

    params: Tree
    master: Tree
    ema: Tree
    moments: dict[str, Tree]


class Outcome(NamedTuple):
    """What a step came to, the same on every rank.

    Args:
        numbers: the numbers that `update` was given.
        norm: global norm of the gradients, without those of the networks in `starts`.
        broken: what of these and of those networks' norms is not finite; the state was updated if nothing is.
        weight_norm: of the same networks' weights before the update; None where it was not asked for.
    """

    numbers: dict[str, Any]
    norm: float
    broken: dict[str, float]
    weight_norm: float | None = None


def fresh(master: Tree, layout: Layout) -> State:
    """The state of step 0, given this rank's shards of the weights."""
    return State(layout.model(master), master, _first_average(master, layout), optim.init_state(master, layout.offload))


def _first_average(master: Tree, layout: Layout) -> Tree:
    if not layout.averaged:
        return {}
    return layout.keep({path: array.copy() for path, array in backend.to_numpy(master).items()})


def ema_weights(state: State) -> Tree:
    """Shards of the weights to sample with: the EMA, or the master weights where there is none."""
    return optim.on_device(state.ema) or state.master


def restore(folder: Path, step: int, layout: Layout) -> tuple[State, dict]:
    """The state and meta of a checkpoint, which any mesh may have written; reads this rank's slices alone.

    An EMA that the checkpoint lacks starts from the weights, moments that one of weights alone lacks are zero.
    """
    trees, meta = _read(folder, step, layout, "" if layout.averaged else "^(?!ema/)")
    begun, bare = layout.averaged and "ema" not in trees, "opt/m" not in trees
    if layout.mesh.world.rank == 0:
        note = (
            " (ema.decay: it has no average of the weights, which starts from them now)" if begun and not bare else ""
        )
        note = " (it has weights alone: optimizer and average start anew)" if bare else note
        print(f"continuing from step {step} in {folder}{note}", flush=True)
    master = backend.moved(trees["params"])
    if bare:
        return fresh(master, layout), meta
    moments = {name: layout.keep(trees[f"opt/{name}"]) for name in "mv"}
    ema = _first_average(master, layout) if begun else layout.keep(trees.get("ema", {}))
    return State(layout.model(master), master, ema, moments), meta


def load_ema(folder: Path, layout: Layout) -> tuple[Tree, dict]:
    """The EMA weights of the newest checkpoint as the model computes with them, and the checkpoint's meta."""
    tree = checkpoint.averaged(folder)
    trees, meta = _read(folder, None, layout, f"^{tree}/", layout.dtypes)
    return layout.model(backend.moved(trees[tree])), meta


def grown(
    found: Trained, layout: Layout, grow: Callable[[Tree], Tree], draw: Callable[[Collection[str]], Tree]
) -> State:
    """The state of step 0 with trained weights; of each this rank's slice alone is read.

    Position tables are read whole and go through `grow`, since a larger table has other shards. Those of a text encoder
    that the weights know nothing of are drawn: `draw` gives this rank's shards. What became of which is printed. DataError
    where other parameters are missing, too many or of another shape.
    """
    arrays, shapes = found.arrays, layout.shapes
    tables = [path for path in shapes if path.startswith("position/") and path in arrays]
    encoder = {path: path.rpartition("/")[0] for path in shapes if path.startswith("text/")}
    known = {path.rpartition("/")[0] for path in arrays}
    fresh_ones = [path for path, of in encoder.items() if of not in known]
    apart = {*tables, *fresh_ones}
    rest = {path: tuple(shape) for path, shape in shapes.items() if path not in apart}
    _same_model(found.source, rest, {path: a.shape for path, a in arrays.items() if path not in apart})
    with ThreadPoolExecutor(treestore.WORKERS) as pool:
        own = dict(zip(rest, pool.map(lambda path: _own(arrays[path], layout), rest), strict=True))
    master = backend.moved(own) | draw(fresh_ones) if fresh_ones else backend.moved(own)
    larger = backend.to_numpy(grow({path: arraystore.cast(np.asarray(arrays[path]), "float32") for path in tables}))
    longer = [
        f"{path} {arrays[path].shape[0]} -> {len(x)}" for path, x in larger.items() if x.shape != arrays[path].shape
    ]
    if layout.mesh.world.rank == 0:
        told = [f"{len(arrays) - len(longer)} arrays loaded"]
        told += [f"{len(n)} {what}: {', '.join(n)}" for what, n in (("grown", longer), ("fresh", fresh_ones)) if n]
        print(f"starting from {found.source}: {'; '.join(told)}", flush=True)
    return fresh(master | {path: layout.place(path, table) for path, table in larger.items()}, layout)


def _own(array: arraystore.Lazy, layout: Layout) -> np.ndarray:
    """This rank's shard of an array, in float32."""
    own = array.read(sharding.bounds(array.shape, layout.shard)) if layout.shard.size > 1 else array.read()
    return sharding.pad(arraystore.cast(own, "float32"), array.shape, layout.shard)


def _read(folder, step, layout, select="", kinds: Mapping[str, str] = {}):
    """This rank's shards of what `select` matches. DataError, before any is read, where another model was saved."""
    for tree, arrays in checkpoint.lazy(folder, step)[0].items():
        all_found = {path: array.shape for path, array in arrays.items()}
        want, found = (
            {path: tuple(shape) for path, shape in table.items() if re.search(select, f"{tree}/{path}")}
            for table in (layout.shapes, all_found)
        )
        _same_model(f"{folder}: its {tree}", want, found)
    trees, meta = checkpoint.load(folder, step, select, kinds, lambda shape: sharding.bounds(shape, layout.shard))
    for tree, values in trees.items():  # one by one, so that no tree is in memory twice
        trees[tree] = {path: sharding.pad(values.pop(path), layout.shapes[path], layout.shard) for path in list(values)}
    return trees, meta


def _same_model(what: str, want: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raises DataError unless the shapes that were found are those of the model."""
    wrong = sorted(path for path in want | found if want.get(path) != found.get(path))
    if wrong:
        raise DataError(
            f"{what} is not of this model config: {', '.join(wrong[:5])} ({len(wrong)} differ; "
            f"{wrong[0]} is {found.get(wrong[0], 'missing')}, expected {want.get(wrong[0], 'nothing')})"
        )


def update(
    state: State,
    grads: Tree,
    step: int,
    lr: float,
    config: Any,
    layout: Layout,
    starts: Mapping[str, int] = {},
    numbers: Mapping[str, Any] = {},
    weigh: bool = False,
) -> Outcome:
    """One optimizer step in place, with the gradients as the model's step gives them; none if anything is not finite.

    `starts` ({prefix of paths: first step}) tells networks with optimizer steps of their own, such as a discriminator:
    they have their own global norm and clipping, and count their steps from the first one. Before it they stay as they
    are, and `grads` need not have them. `numbers` are scalars, such as the losses, that must be finite too, and vectors; the
    means over all ranks are returned. With `weigh` the weights' norm is too.
    """
    shard, own, sums = layout.shard, {}, {}
    for prefix in (prefix for prefix, start in {"": 0, **starts}.items() if step >= start):
        own[prefix] = _network(grads, prefix, starts)
        if layout.zero_stage == 1 and shard.size > 1:
            own[prefix] = zero.own(own[prefix], shard)
        sums[prefix] = optim.square_sums({path.removeprefix(prefix): g for path, g in own[prefix].items()})
    if weigh:
        sums["weight_"] = optim.square_sums(_network(state.master, "", starts))
    # Over all ranks, not those of a shard group alone: replicas must not differ in what they do about it.
    read = iter(optim.means([*numbers.values(), *itertools.chain(*sums.values())], layout.mesh.world))
    numbers = dict(zip(numbers, read, strict=False))
    norms = {prefix: math.sqrt(shard.size * sum(itertools.islice(read, len(s)))) for prefix, s in sums.items()}
    weight_norm = norms.pop("weight_", None)
    found = numbers | {f"{prefix}norm": norm for prefix, norm in norms.items()}
    broken = {key: x for key, x in found.items() if isinstance(x, float) and not math.isfinite(x)}
    outcome = Outcome(numbers, norms[""], broken, weight_norm)
    if outcome.broken:
        return outcome
    for prefix, norm in norms.items():
        done, master = step - starts.get(prefix, 0), _network(state.master, prefix, starts)
        optim.adamw_update(master, own[prefix], state.moments, done, lr, config.optim, norm)
        if state.ema:
            # An average over few steps weighs the random start too much: the decay grows to its value.
            optim.ema_update(state.ema, master, min(config.ema.decay, (1 + done) / (10 + done)))
        copies = [path for path, value in master.items() if state.params[path] is not value]
        for piece in layout.pieces(copies):
            state.params.update(layout.model({path: master[path] for path in piece}))
    kernels.all_stored()
    return outcome


def _network(tree: Tree, prefix: str, starts: Mapping[str, int]) -> Tree:
    """What of a tree belongs to the network of this prefix; "" is the one of all paths that no other has."""
    return {path: value for path, value in tree.items() if prefix == next(filter(path.startswith, starts), "")}


def save(
    folder: Path, step: int, state: State, meta: dict, config: Any, layout: Layout, last: bool = False
) -> Future | None:
    """Copies this rank's shards and writes them in the background; the first replica of the state alone is written.

    Of the `last` save nothing is copied: no step follows that would change the state meanwhile.
    """
    sync.wait(layout.mesh.world)  # rank 0 may have waited for the checkpoint before
    # New for every attempt and the same on every rank.
    token = sync.agree(int(time.time()) % 10_000_000, layout.mesh.world)
    if layout.mesh.world.rank >= layout.shard.size:
        return None
    trees = {"params": state.master, "opt/m": state.moments["m"], "opt/v": state.moments["v"]}
    if state.ema:
        trees["ema"] = state.ema

    def part(path, value):
        array = dtypes.to_numpy(path, value)
        return sharding.part(tuple(layout.shapes[path]), array if last else np.array(array), layout.shard)

    parts = {tree: {path: part(path, value) for path, value in values.items()} for tree, values in trees.items()}
    keep = config.train.keep_checkpoints, config.train.keep_every, config.train.keep_best

    def work() -> None:
        checkpoint.save(folder, step, parts, meta, layout.shard.rank, layout.shard.size, str(token))
        if layout.shard.rank == 0:
            checkpoint.prune(folder, *keep)

    return checkpoint.in_background(work)
