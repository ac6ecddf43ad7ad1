"""The autoencoder's opponent in training: its state, kept in the same checkpoints."""

from typing import Any

from moviegen.models.tae import discriminator, shapes
from moviegen.nn import backend
from moviegen.parallel.mesh import Mesh
from moviegen.training import state as states
from moviegen.training.state import Layout, State

PREFIX = shapes.DISCRIMINATOR


def layout(config: Any, mesh: Mesh) -> Layout | None:
    """That of the discriminator; None where no adversarial loss is asked for."""
    if not config.loss.get("adversarial") or not config.loss.adversarial.weight:
        return None
    return Layout(discriminator.shapes(config.loss.adversarial), mesh, config.train.zero_stage)


def fresh(config: Any, own: Layout) -> State:
    """The discriminator's state of step 0."""
    params = backend.to_numpy(discriminator.init(config.loss.adversarial, config.seed))
    return states.fresh({path: own.place(path, array) for path, array in params.items()}, own)


def joint_layout(main: Layout, own: Layout | None) -> Layout:
    """That of both models as one."""
    if own is None:
        return main
    return main._replace(shapes={**main.shapes, **own.shapes})


def joined(main: State, own: State | None) -> State:
    """Both as one state, to be saved: a checkpoint has the two of the same step, or neither."""
    if own is None:
        return main

    moments = {name: main.moments[name] | own.moments[name] for name in main.moments}
    return State(main.params | own.params, main.master | own.master, main.average | own.average, moments)


def parted(state: State, own: Layout | None) -> tuple[State, State | None]:
    """The inverse of `joined`."""
    if own is None:
        return state, None

    def part(tree, wanted):
        return {path: value for path, value in tree.items() if path.startswith(PREFIX) == wanted}

    def one(wanted):
        moments = {name: part(tree, wanted) for name, tree in state.moments.items()}
        master = part(state.master, wanted)
        params = master if state.params is state.master else part(state.params, wanted)
        return State(params, master, part(state.average, wanted), moments)

    return one(False), one(True)


def update(own: State, grads: dict[str, Any], step: int, lr: float, config: Any, layout: Layout) -> None:
    """One optimizer step of the discriminator in place; its steps count from the one that it starts in."""
    states.update(own, grads, step - config.loss.adversarial.start, lr, config, layout)


def plays(config: Any, own: State | None, step: int) -> bool:
    """Whether the adversarial loss is on in this step."""
    return own is not None and step >= config.loss.adversarial.start
