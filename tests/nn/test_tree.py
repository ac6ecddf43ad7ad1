from moviegen.nn import tree

TREE = {"blocks/0/q": 1, "blocks/0/mlp/up": 2, "blocks/01/q": 3, "blocks/1/q": 4, "patch": 5}


def test_sub_takes_whole_components_alone():
    assert tree.sub(TREE, "blocks/0") == {"q": 1, "mlp/up": 2}
    assert tree.sub(TREE, "patch") == {}
    assert tree.sub(TREE, "block") == {}


def test_join_is_the_inverse_of_sub():
    parts = {"a": {"x": 1, "y/z": 2}, "b/c": {"x": 3}}
    joined = tree.join(parts)
    assert joined == {"a/x": 1, "a/y/z": 2, "b/c/x": 3}
    assert {prefix: tree.sub(joined, prefix) for prefix in parts} == parts
