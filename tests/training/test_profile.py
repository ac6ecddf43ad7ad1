import json

from mindspore import mint
from ml_collections import ConfigDict

from moviegen.nn import backend
from moviegen.training import profile


def test_the_profile_of_the_steps_named_is_written(tmp_path, capsys):
    config = ConfigDict(dict(train=dict(profile_steps=(2, 2))))
    x = backend.tensor([1.0, 2.0])
    with profile.steps(config, tmp_path, 0) as begin:
        for step in range(1, 5):
            begin(step)
            x = mint.exp(x) if step == 3 else x + 1
            assert (tmp_path / profile.FOLDER).is_dir() == (step > 1)
    (trace,) = (tmp_path / profile.FOLDER).rglob("trace_view.json")
    events = {event.get("name", "") for event in json.loads(trace.read_text())}
    assert any("Exp" in name for name in events) and "the profile of steps 2 to 3 is in" in capsys.readouterr().out


def test_nothing_is_profiled_without_being_asked_for(tmp_path):
    with profile.steps(ConfigDict(dict(train={})), tmp_path, 0) as begin:
        begin(0)
    assert not (tmp_path / profile.FOLDER).exists()
