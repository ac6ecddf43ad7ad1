import threading

from moviegen.parallel import sync
from moviegen.parallel.mesh import ALONE, Group


def test_the_others_wait_for_the_first_rank(tmp_path, monkeypatch):
    """Threads stand in for ranks; the marker of an earlier run counts for nothing."""
    met, done, marker = threading.Barrier(2), [], tmp_path / "ranks" / "x.done"
    marker.parent.mkdir()
    marker.touch()
    monkeypatch.setattr(sync, "barrier", lambda group: met.wait(20))
    monkeypatch.setattr(sync.time, "sleep", lambda seconds: waited.set())
    waited = threading.Event()

    def make():
        assert waited.wait(20)
        done.append(threading.current_thread().name)

    def run(rank):
        sync.first_rank_alone(Group("", 2, rank), make, marker)
        assert done == ["0"]
        done_by.append(rank)

    done_by = []
    threads = [threading.Thread(target=run, args=(rank,), name=f"{rank}") for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done_by) == [0, 1]


def test_what_the_first_rank_finds_the_others_take(tmp_path, monkeypatch):
    file = tmp_path / "new" / "found.txt"

    def ask(rank):
        monkeypatch.setattr(sync, "first_rank_alone", lambda world, do, marker: rank or do())
        return sync.found_by_first(Group("both", 2, rank), lambda: f"by {rank}", file.write_text, file.read_text, file)

    assert ask(0) == "by 0" and ask(1) == "by 0"
    monkeypatch.undo()
    assert sync.found_by_first(ALONE, lambda: 3, None, None, tmp_path / "alone" / "x") == 3  # one rank leaves nothing
    assert not (tmp_path / "alone").exists()
