"""The planner beside the seed's rows, and the page that shows it."""

from pathlib import Path

from benchmarks import plan_table, seed_rows
from moviegen.models.costs import cards

PAGE = Path(seed_rows.__file__).parents[1] / "docs/numbers.md"


def test_the_page_has_what_the_command_prints(capsys):
    seed_rows.main()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + 12 and set(printed) <= set(PAGE.read_text(encoding="utf-8").splitlines())


def test_rows_that_are_far_off_are_the_two_that_the_page_explains():
    off = {}
    for file, axes, batch, published, _ in seed_rows.ROWS[:9]:
        plan = seed_rows.planned(file, axes, batch)
        off[file] = plan.times.get("a video", plan.mean).seconds / published - 1
    assert {file for file, share in off.items() if abs(share) > 0.25} == {"1b_stage2.py", "5b_stage1.py"}


def test_a_row_of_the_table_of_plans():
    name, count, mesh, _, batch, *_ = cells = plan_table.row("1b_stage2", 8, cards.CARDS["910B2"])
    assert (name, count, batch) == ("`1b_stage2`", "8", "8") and mesh.startswith("`") and len(cells) == 9
