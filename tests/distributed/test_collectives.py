from tests.distributed import ranks


def test_collectives_and_their_gradients_on_two_to_four_ranks(tmp_path):
    ranks.run("check_collectives.py", 4, tmp_path)
    for log in sorted((tmp_path / "ranks").glob("worker_*.log")):
        assert "collectives ok" in log.read_text(), log.read_text()[-2000:]
