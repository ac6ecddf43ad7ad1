from moviegen import workers

OWN = "[WARNING] DISTRIBUTED(25598,7f4492232b80,python):2026-11-22-23:35:02.697.274 [a.cc:485] Connect] text\n"


def test_show_prints_whole_lines_once_without_mindspores_own(tmp_path, capsys):
    log = tmp_path / "worker_0.log"
    assert workers._show(log, 0) == 0
    log.write_text(OWN + "step 1\nste")
    position = workers._show(log, 0)
    assert capsys.readouterr().out == "step 1\n"
    log.write_text(OWN + "step 1\nstep 2\n" + OWN + "[1/3] sweep\n[ERROR] ME(1): bad\n")
    assert workers._show(log, position) == log.stat().st_size
    assert capsys.readouterr().out == "step 2\n[1/3] sweep\n[ERROR] ME(1): bad\n"


def test_failure_is_the_first_ranks_own_code(tmp_path):
    (tmp_path / "msrun.log").write_text(OWN)
    assert workers._failure(tmp_path) is None
    line = "[ERROR] ME(1:2,MainProcess): Worker process 25740 exit with exception. Error code: {}.\n"
    (tmp_path / "msrun.log").write_text(OWN + line.format(-9) + line.format(1))
    assert workers._failure(tmp_path) == -9
