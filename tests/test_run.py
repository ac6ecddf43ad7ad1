"""The runner of `make test`: what shares a process, and what is counted."""

import pytest

from tests import run


def test_long_files_have_a_process_each_and_come_first():
    files = [*run.TESTS.rglob("test_*.py")]
    found = run.groups(files)
    assert [group[0].relative_to(run.TESTS).as_posix() for group in found[: len(run.LONG)]] == list(run.LONG)
    assert all(len(group) == 1 for group in found[: len(run.LONG)])
    assert sorted(file for group in found for file in group) == sorted(files)
    assert all(len({file.parent for file in group}) == 1 for group in found)


@pytest.mark.parametrize(
    ("closing", "expected"),
    [
        ("3 passed in 0.51s", (3, 0, 0)),
        ("1 failed, 37 passed, 8 deselected in 0.51s", (37, 1, 0)),
        ("2 failed, 1 passed, 4 skipped, 1 warning, 2 errors in 70.10s (0:01:10)", (1, 4, 4)),
        ("1 error in 0.10s", (0, 1, 0)),
        ("Segmentation fault", (0, 0, 0)),
    ],
)
def test_counts(closing, expected):
    found = run.counts(f"7 passed in words of a test\n{closing}\n")
    assert (found["passed"], found["failed"], found["skipped"]) == expected


def test_a_failure_and_a_death_fail_the_whole(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "test_good.py").write_text("def test():\n    pass\n")
    (tmp_path / "a/test_bad.py").write_text("def test():\n    assert 1 == 2\n")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/test_dies.py").write_text("import os\ndef test():\n    os.kill(os.getpid(), 9)\n")
    good, bad, dies = (str(tmp_path / name) for name in ("test_good.py", "a/test_bad.py", "b/test_dies.py"))
    assert run.main([good]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 0 failed, 0 skipped"
    assert run.main([good, bad, dies]) == 1
    said = capsys.readouterr().out
    assert "assert 1 == 2" in said and said.splitlines()[-1] == "1 passed, 2 failed, 0 skipped"
    assert run.main([good, "-k", "nothing"]) == 1  # no test at all is no success
