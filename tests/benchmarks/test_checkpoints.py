from benchmarks import checkpoints


def test_a_small_state_is_saved_and_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints, "ROUNDS", 1)
    monkeypatch.setattr(checkpoints, "MODEL", dict(size="tiny", num_layers=1))
    checkpoints.main(str(tmp_path))
    said = capsys.readouterr().out
    for words in ("arrays, 1 rounds", "save", "dd write", "load", "dd read", "numpy read", "training waits"):
        assert words in said
    assert not any(tmp_path.iterdir())
