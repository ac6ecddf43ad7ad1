"""Run as several ranks: every collective and its gradient against numpy, on groups of 2 and more, eager and compiled.

On all ranks also as Ascend has them, in float16: what AllReduce can do stands in for the primitives.
"""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindspore import ops  # noqa: E402

from moviegen.nn import kernels
from moviegen.parallel import collectives, mesh, sync  # noqa: E402
from tests.distributed import links  # noqa: E402


def value(seed: int, shape=(12, 12, 2)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pieces(x, axis, n):
    return np.split(x, n, axis)


def cases(group):
    """Name -> (collective, its result on every rank, its transpose on every rank), of all ranks' inputs."""
    n = group.size

    def everywhere(x):
        return [x] * n

    def exchange(xs, split, concat):
        return [np.concatenate([pieces(x, split, n)[r] for x in xs], concat) for r in range(n)]

    found = {
        "all_reduce": (collectives.all_reduce(group), lambda xs: everywhere(sum(xs)), lambda ds: everywhere(sum(ds)))
    }
    found["broadcast"] = (
        collectives.broadcast(group),
        lambda xs: everywhere(xs[0]),
        lambda ds: [sum(ds), *[0 * ds[0]] * (n - 1)],
    )
    for axis in (0, 1):
        found[f"all_gather {axis}"] = (
            collectives.all_gather(group, axis),
            lambda xs, axis=axis: everywhere(np.concatenate(xs, axis)),
            lambda ds, axis=axis: pieces(sum(ds), axis, n),
        )
        found[f"reduce_scatter {axis}"] = (
            collectives.reduce_scatter(group, axis),
            lambda xs, axis=axis: pieces(sum(xs), axis, n),
            lambda ds, axis=axis: everywhere(np.concatenate(ds, axis)),
        )
        found[f"all_to_all {axis}"] = (
            collectives.all_to_all(group, axis, 1 - axis),
            lambda xs, axis=axis: exchange(xs, axis, 1 - axis),
            lambda ds, axis=axis: exchange(ds, 1 - axis, axis),
        )
    return found


def weighed(collective):
    def run(x, d):
        out = collective(x)
        return ops.sum(out * d), out

    return run


def read_by_first(group, tree):
    assert group.rank == 0
    return {path: ms.Tensor(array) for path, array in tree.items()}


def take_ascends_branch(group):
    """Collectives made from now on call Ascend's primitives, of which each has a stand-in for this group."""
    gather, scatter = collectives.all_gather(group), collectives.reduce_scatter(group)
    ops.AllGather = lambda name: {group.name: gather}[name]
    ops.ReduceScatter = lambda op, name: {(ops.ReduceOp.SUM, group.name): scatter}[op, name]
    exchange = collectives._Exchange
    ops.AlltoAll = lambda count, *axes: {(group.size, group.name): exchange(group, *axes[:2])}[count, axes[2]]
    collectives._Exchange = None
    kernels.ON_ASCEND = True


def check(group, dtype, atol):
    size = group.size
    for name, (collective, expected, transposed) in cases(group).items():
        xs = [value(rank) for rank in range(size)]
        outs = expected(xs)
        douts = [value(100 + rank, out.shape) for rank, out in enumerate(outs)]

        x, d = ms.Tensor(xs[group.rank], dtype), ms.Tensor(douts[group.rank], dtype)
        for wrap in (lambda f: f, ms.jit):
            both = wrap(ms.value_and_grad(weighed(collective), has_aux=True))
            for _ in range(2):  # a compiled gradient may be right once and wrong from then on
                (_, out), grad = both(x, d)
                assert out.dtype == grad.dtype == dtype, name
                np.testing.assert_allclose(out.asnumpy(), outs[group.rank], atol=atol, err_msg=name)
                np.testing.assert_allclose(
                    grad.asnumpy(), transposed(douts)[group.rank], atol=atol, err_msg=f"gradient of {name}"
                )


def check_started(group, dtype, atol):
    """What runs beside computing is right once it is waited for, and nothing at all before."""
    links.use()
    xs = [value(rank) for rank in range(group.size)]
    for start, out in (
        (collectives.start_all_gather, np.concatenate(xs)),
        (collectives.start_reduce_scatter, pieces(sum(xs), 0, group.size)[group.rank]),
        (collectives.start_all_reduce, sum(xs)),
    ):
        waits = [start(group, ms.Tensor(xs[group.rank], dtype)) for _ in range(2)]
        for found in (wait() for wait in (*waits, waits[0])):
            assert found.dtype == dtype
            np.testing.assert_allclose(found.asnumpy(), out, atol=atol, err_msg=start.__name__)
    lost = collectives.start_all_reduce(group, ms.Tensor(xs[group.rank]))
    collectives.settle()
    np.testing.assert_allclose(lost().asnumpy(), sum(xs), atol=1e-5)
    links.leave()


def main() -> None:
    mesh.setup({"data": mesh.ranks(), "zero": 1, "sp": 1})
    for size in range(2, mesh.ranks() + 1):
        if mesh.rank() >= size:
            continue
        group = mesh.make({"data": size, "zero": 1, "sp": 1}, range(size)).world
        assert group.size == size and group.rank == mesh.rank()
        check(group, ms.float32, 1e-5)
        check_started(group, ms.float32, 1e-5)
        check_started(group, ms.float16, 2e-2)
        tree = {"a": value(0), "b": value(1, (3,)), "c": value(2, ())}
        shapes = {path: array.shape for path, array in reversed(tree.items())}
        found = sync.from_first(group, functools.partial(read_by_first, group, tree), shapes)
        for path, array in tree.items():
            np.testing.assert_array_equal(found[path].asnumpy(), array)
        assert sync.agree(7 + mesh.rank(), group) == 7
    take_ascends_branch(group)
    check(group, ms.float16, 2e-2)
    print("collectives ok", flush=True)


if __name__ == "__main__":
    main()
