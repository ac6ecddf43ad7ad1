import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from moviegen.errors import ConfigError, DataError
from moviegen.storage import safetensors_io
from moviegen.text import fetch
from tests.text import hub, tiny_encoders

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HF_ENDPOINT", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def repositories(tmp_path):
    """OWNER/ul2, OWNER/metaclip and OWNER/byt5 with safetensors, as they are on the hub."""
    root = tmp_path / "hub"
    tiny_encoders.make(root / "owner")
    for name in ("ul2", "byt5"):
        file = root / "owner" / name / "model.safetensors"
        others = {"decoder.block.0.layer.0.layer_norm.weight": np.ones(4, np.float32), "lm_head.weight": np.ones(3)}
        safetensors_io.write(safetensors_io.read(file) | others, file)
        (root / "owner" / name / "README.md").write_text("a model")
    return root


def test_a_repository_becomes_a_folder_that_encoders_read(repositories, tmp_path):
    target = tmp_path / "encoders" / "ul2"
    with hub.serve(repositories) as (endpoint, server):
        assert fetch.fetch("ul2", "owner/ul2", target, endpoint)
        names = {path.name for path in target.iterdir()}
        assert names == {"config.json", "spiece.model", "model.safetensors", "fetched.json"}
        before = len(server.requests)
        assert not any("README" in path for _, path, _ in server.requests)
        assert not fetch.fetch("ul2", "owner/ul2", target, endpoint) and len(server.requests) == before
    source = safetensors_io.read(repositories / "owner" / "ul2" / "model.safetensors")
    found = safetensors_io.read(target)
    assert found.keys() == {name for name in source if not name.startswith(("decoder", "lm_head"))}
    for name, value in found.items():
        np.testing.assert_array_equal(value, source[name])
    note = json.loads((target / "fetched.json").read_text())
    assert note["repository"] == "owner/ul2" and note["revision"] == hub.COMMIT
    assert note["written"].keys() == {"config.json", "spiece.model", "model.safetensors"}


def test_a_folder_that_was_damaged_is_fetched_again(repositories, tmp_path):
    target = tmp_path / "byt5"
    with hub.serve(repositories) as (endpoint, _):
        fetch.fetch("byt5", "owner/byt5", target, endpoint)
        whole = (target / "model.safetensors").read_bytes()
        (target / "model.safetensors").write_bytes(whole[:-1] + b"x")
        assert fetch.fetch("byt5", "owner/byt5", target, endpoint)
    assert (target / "model.safetensors").read_bytes() == whole


def test_a_broken_download_goes_on_where_it_was(repositories, tmp_path, monkeypatch):
    """The connection breaks in the weights as often as the client tries; the next call asks for the rest alone."""
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    file = repositories / "owner" / "byt5" / "model.safetensors"
    target, weights = tmp_path / "byt5", f"/owner/byt5/resolve/{hub.COMMIT}/model.safetensors"
    with hub.serve(repositories) as (endpoint, server):

        def asked():
            return [part for method, path, part in server.requests if method == "GET" and path == weights]

        monkeypatch.setattr(file_download, "http_get", once(file_download.http_get))
        server.cut = [3000]
        with pytest.raises(ConfigError, match="the same command goes on with what is there"):
            fetch.fetch("byt5", "owner/byt5", target, endpoint)
        assert (
            asked() == [None] and (target / "download" / hub.COMMIT / "model.safetensors.part").stat().st_size == 3000
        )
        monkeypatch.undo()
        fetch.fetch("byt5", "owner/byt5", target, endpoint)
        assert asked() == [None, "bytes=3000-"]
        assert sum("config.json" in path for method, path, _ in server.requests if method == "GET") == 1
    assert safetensors_io.read(target).keys() < safetensors_io.read(file).keys()


def test_a_call_that_was_killed_is_taken_up(repositories, tmp_path, monkeypatch):
    target = tmp_path / "ul2"
    for step in ("copyfile", "rmtree"):

        def killed(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(fetch.shutil, step, killed)
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch("ul2", "owner/ul2", target, "", str(repositories))
        monkeypatch.undo()
        fetch.fetch("ul2", "owner/ul2", target, "", str(repositories))
        assert not fetch.fetch("ul2", "owner/ul2", target, "", str(repositories))
        (target / "config.json").write_text("{}")  # so that the next round fetches once more
    assert fetch.fetch("ul2", "owner/ul2", target, "", str(repositories))
    with pytest.raises(ConfigError, match="holds owner/ul2, not owner/byt5"):
        fetch.fetch("byt5", "owner/byt5", target, "", str(repositories))


def once(http_get):
    """The client's download without its own second tries."""
    return lambda *args, **kwargs: http_get(*args, **kwargs, _nb_retries=0)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_file_that_is_not_what_the_hub_states_is_refused(repositories, tmp_path, file):
    target = tmp_path / "byt5"
    with hub.serve(repositories) as (endpoint, server):
        server.spoil = {file: b"{ "}
        with pytest.raises(DataError, match=f"owner/byt5/{file} came damaged: its (sha256|git) is"):
            fetch.fetch("byt5", "owner/byt5", target, endpoint)
        assert not (target / "model.safetensors").exists()
        server.spoil = {}
        assert fetch.fetch("byt5", "owner/byt5", target, endpoint)


@pytest.mark.parametrize("revision", ["ABSOLUTE", "../../../outside", "..", "a/b", "", None, 5])
def test_a_revision_that_leads_elsewhere_is_refused(repositories, tmp_path, revision):
    outside, target = tmp_path / "outside", tmp_path / "encoders" / "byt5"
    with hub.serve(repositories) as (endpoint, server):
        server.lies = {"sha": str(outside) if revision == "ABSOLUTE" else revision}
        with pytest.raises(DataError, match="owner/byt5 at http.*(the revision is .*expected a name|not a hub's)"):
            fetch.fetch("byt5", "owner/byt5", target, endpoint)
    assert not outside.exists() and [path.name for path in tmp_path.rglob("*.safetensors")] == ["model.safetensors"] * 3
    assert {path.name for path in target.iterdir()} == {"fetched.json"}


@pytest.mark.parametrize(
    "name", ["../config.json", "/config.json", "model-../x.safetensors", "..", "a\\b", ".hidden", None]
)
def test_a_file_of_a_listing_that_leads_elsewhere_is_never_asked_for(repositories, tmp_path, name):
    target = tmp_path / "encoders" / "byt5"
    with hub.serve(repositories) as (endpoint, server):
        listed = hub.describe(repositories / "owner" / "byt5", "owner/byt5")["siblings"]
        server.lies = {"siblings": [*listed, {"rfilename": name, "size": 2, "blobId": "x"}]}
        if name is None:
            with pytest.raises(DataError, match="its answer is not a hub's"):
                fetch.fetch("byt5", "owner/byt5", target, endpoint)
        else:
            assert fetch.fetch("byt5", "owner/byt5", target, endpoint)
            wanted = {f"/owner/byt5/resolve/{hub.COMMIT}/{file}" for file in ("config.json", "model.safetensors")}
            assert {path for _, path, _ in server.requests[1:]} == wanted
    assert {path.name for path in target.parent.iterdir()} == {"byt5"}


@pytest.mark.parametrize("written", [["x"], {"../../thesis.txt": "x"}, "text", None])
def test_a_note_that_names_other_files_counts_as_none(repositories, tmp_path, written):
    target = tmp_path / "byt5"
    assert fetch.fetch("byt5", "owner/byt5", target, "", str(repositories))
    note = json.loads((target / "fetched.json").read_text())
    (target / "fetched.json").write_text(json.dumps(note | {"written": written}))
    assert fetch.fetch("byt5", "owner/byt5", target, "", str(repositories))


def test_links_of_a_copy_are_not_followed_out_of_it(repositories, tmp_path):
    file = repositories / "owner" / "byt5" / "config.json"
    file.rename(tmp_path / "secret")
    file.symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="'config.json' leads out of the folder"):
        fetch.fetch("byt5", "owner/byt5", tmp_path / "byt5", "", str(repositories))


def test_torch_files_become_safetensors(tmp_path, monkeypatch):
    """A saved file of torch's, taken for an encoder's weights whatever its tensors are called."""
    folder = tmp_path / "hub" / "owner" / "byt5"
    tiny_encoders.make(tmp_path / "made")
    folder.mkdir(parents=True)
    shutil.copy(tmp_path / "made" / "byt5" / "config.json", folder)
    shutil.copy(GOLDEN / "torch_save.bin", folder / "pytorch_model.bin")
    monkeypatch.setattr(fetch, "_names", lambda name, folder, arrays: {"a": "plain", "b": "bf16", "c": "transposed"})
    target = tmp_path / "byt5"
    with hub.serve(tmp_path / "hub") as (endpoint, _):
        assert fetch.fetch("byt5", "owner/byt5", target, endpoint)
    assert not list(target.glob("*.bin")) and not (target / "download").exists()
    found = safetensors_io.read(target)
    np.testing.assert_array_equal(found["transposed"], np.arange(24, dtype=np.float32).reshape(4, 6).T)
    assert found["bf16"].dtype.name == "bfloat16"  # as it was saved


def test_offline_from_a_copy(repositories, tmp_path):
    target = tmp_path / "metaclip"
    assert fetch.fetch("metaclip", "owner/metaclip", target, "http://127.0.0.1:9", str(repositories))
    assert {"config.json", "vocab.json", "merges.txt", "model.safetensors"} < {path.name for path in target.iterdir()}
    assert (repositories / "owner" / "metaclip" / "model.safetensors").is_file()
    with pytest.raises(ConfigError, match="holds owner/metaclip, not owner/other"):
        fetch.fetch("metaclip", "owner/other", target, "", str(repositories))


def test_several_files_with_an_index(repositories, tmp_path):
    source = repositories / "owner" / "ul2"
    arrays = safetensors_io.read(source / "model.safetensors")
    safetensors_io.write_shards(arrays, source, None, 8000, {})
    assert len(list(source.glob("model-*.safetensors"))) > 1
    target = tmp_path / "ul2"
    with hub.serve(repositories) as (endpoint, _):
        fetch.fetch("ul2", "owner/ul2", target, endpoint)
    assert safetensors_io.read(target).keys() < arrays.keys()


def test_what_cannot_be_fetched(repositories, tmp_path):
    with hub.serve(repositories) as (endpoint, _):
        with pytest.raises(ConfigError, match="owner/gone at http://127.0.0.1.*text.offline to a copy"):
            fetch.fetch("byt5", "owner/gone", tmp_path / "a", endpoint)
        with pytest.raises(ConfigError, match="missing: blocks"):  # T5's weights are no CLIP's
            shutil.copy(repositories / "owner/metaclip/config.json", repositories / "owner/byt5/config.json")
            fetch.fetch("metaclip", "owner/byt5", tmp_path / "b", endpoint)
        (repositories / "owner/ul2/model.safetensors").unlink()
        with pytest.raises(DataError, match="owner/ul2 has no model.safetensors and no pytorch_model.bin, but"):
            fetch.fetch("ul2", "owner/ul2", tmp_path / "c", endpoint)
    with pytest.raises(ConfigError, match="at http://127.0.0.1:9"):
        fetch.fetch("byt5", "owner/byt5", tmp_path / "d", "http://127.0.0.1:9")
    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="holds files that were not fetched"):
        fetch.fetch("byt5", "owner/byt5", own, "", str(repositories))
    with pytest.raises(ConfigError, match="text.offline: .*is not a folder"):
        fetch.fetch("byt5", "owner/nowhere", tmp_path / "e", "", str(repositories))
