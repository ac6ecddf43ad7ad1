from benchmarks import check_data


def test_every_row_of_the_made_up_table_is_looked_at_twice(tmp_path):
    (_, _, first), (_, _, again) = check_data.measured(400, tmp_path)
    assert first == again == 400 - 36  # those of 60 to 95 frames at 24 a second do not fill 4 s at 32
    assert len((tmp_path / "metadata.csv").read_text().splitlines()) == 401
