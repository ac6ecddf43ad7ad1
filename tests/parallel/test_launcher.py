import socket

from moviegen.parallel import launcher

OWN = "[WARNING] DISTRIBUTED(25598,7f4492232b80,python):2026-11-22-23:35:02.697.274 [a.cc:485] Connect] text\n"


def test_show_prints_whole_lines_once_without_mindspores_own(tmp_path, capsys):
    log = tmp_path / "worker_0.log"
    assert launcher._show(log, 0) == 0
    log.write_text(OWN + "step 1\nste")
    position = launcher._show(log, 0)
    assert capsys.readouterr().out == "step 1\n"
    log.write_text(OWN + "step 1\nstep 2\n" + OWN + "[1/3] sweep\n[ERROR] ME(1): bad\n")
    assert launcher._show(log, position) == log.stat().st_size
    assert capsys.readouterr().out == "step 2\n[1/3] sweep\n[ERROR] ME(1): bad\n"


def test_the_rank_to_blame_said_so_or_was_killed():
    assert launcher._first({0: 1, 2: 2}, {"rank": 2, "why": "failed"}) == 2
    assert launcher._first({0: 1, 1: -9}, None) == 1
    assert launcher._first({0: 1, 1: -9}, {"rank": 2, "why": "failed"}) == 1
    assert launcher._first({"scheduler": 1}, None) == "scheduler"


def test_a_port_is_held_until_the_scheduler_listens_there():
    with launcher._port() as first, launcher._port() as second, socket.socket() as scheduler:
        assert first != second
        scheduler.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as MindSpore's does
        scheduler.bind(("127.0.0.1", first))
        scheduler.listen()
        with socket.create_connection(("127.0.0.1", first)):
            scheduler.accept()[0].close()
