import numpy as np
from ml_collections import ConfigDict

from moviegen.nn import backend
from moviegen.parallel.mesh import ONE
from moviegen.training import adversary
from moviegen.training import state as states


def config(weight=0.5):
    adversarial = dict(weight=weight, start=2, dims=3, channels=2)
    return ConfigDict(dict(seed=0, loss=dict(adversarial=adversarial), train=dict(zero_stage=0)))


def main():
    layout = states.Layout({"a/w": (2, 3)}, ONE, 0)
    return layout, states.fresh({"a/w": layout.place("a/w", np.ones((2, 3), np.float32))}, layout)


def test_both_states_are_saved_as_one_and_come_apart_again():
    layout, state = main()
    own = adversary.layout(config(), ONE)
    opponent = adversary.fresh(config(), own)
    joint = adversary.joined(state, opponent)
    shapes = adversary.joint_layout(layout, own).shapes
    for tree in (joint.master, joint.average, *joint.moments.values()):
        assert {path: tuple(value.shape) for path, value in tree.items()} == shapes
    for before, after in zip((state, opponent), adversary.parted(joint, own), strict=True):
        assert after.params.keys() == after.master.keys()
        assert after.master.keys() == before.master.keys() and after.moments.keys() == {"m", "v"}
        for path, value in backend.to_numpy(before.master).items():
            np.testing.assert_array_equal(after.master[path].asnumpy(), value)


def test_without_an_adversarial_loss_there_is_no_opponent():
    layout, state = main()
    assert adversary.layout(config(0.0), ONE) is None
    assert adversary.layout(ConfigDict(dict(loss=dict(l1=1.0))), ONE) is None
    assert adversary.joined(state, None) is state and adversary.parted(state, None) == (state, None)
    assert adversary.joint_layout(layout, None) is layout


def test_it_plays_from_its_start_on():
    _, state = main()
    assert [adversary.plays(config(), state, step) for step in range(4)] == [False, False, True, True]
    assert not adversary.plays(config(), None, 9)
