"""A text encoder's repository on Hugging Face's hub, or a copy of it, made into a folder that we read.

Every file is held against the checksum that the hub states for it. Weights are written anew as safetensors, the
encoder's tensors alone: pickles are read, never run.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from moviegen.convert import huggingface, torch_bin
from moviegen.errors import ConfigError, DataError
from moviegen.storage import files, fingerprint, safetensors_io
from moviegen.text import encoders, tokenizers

NOTE = "fetched.json"  # the repository; once all is there also its revision, checksums of what was read and written
SHARD_BYTES = 5_000_000_000
_PLAIN = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # revisions and files: what names no other folder, whoever says it


class Source(NamedTuple):
    """A repository: its files with their checksums ("sha256:..." or "git:...", "" = unknown), and how to get one."""

    place: str
    revision: str
    files: dict[str, str]
    get: Callable[[str], Path]


def fetch(name: str, repository: str, folder: Path, endpoint: str = "", offline: str = "") -> bool:
    """Fills `folder` with an encoder's config.json, tokenizer files and safetensors; False where it was whole already.

    From the hub, from a mirror of it at `endpoint`, or from the copy `OFFLINE/repository`. The same call again goes on
    after a stop. Raises ConfigError or DataError; what was in the folder before stays until all is fetched.
    """
    if _is_whole(folder, repository):
        return False
    if not (folder / NOTE).is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(
                f"{folder} holds files that were not fetched: name an empty folder as text.encoders.{name}"
            )
        files.write_json({"repository": repository}, folder / NOTE)  # whose the folder is, should this be stopped
    download = folder / "download"
    source = _local(Path(offline) / repository) if offline else _hub(repository, endpoint, download)
    if "config.json" not in source.files:
        raise DataError(f"{source.place} has no config.json")
    texts, weights = _choose(name, repository, source.files)
    wanted = [*texts, *weights]
    paths, sums = {}, {}
    for i, file in enumerate(wanted, 1):
        print(f"fetch_text_encoder: {repository}/{file} ({i}/{len(wanted)})", flush=True)
        paths[file] = source.get(file)
        sums[file] = _checked(paths[file], source.files[file], f"{repository}/{file}")
    at = paths[weights[0]] if len(weights) == 1 else paths[weights[0]].parent
    arrays = torch_bin.lazy(at) if weights[-1].endswith(".bin") else safetensors_io.lazy(at)[0]
    arrays = {array: arrays[array] for array in _names(name, paths["config.json"].parent, arrays).values()}
    written = safetensors_io.write_shards(arrays, folder, None, SHARD_BYTES, {})
    for file in texts:
        with files.aside(folder / file) as temporary:
            shutil.copyfile(paths[file], temporary)
        written.append(folder / file)
    made = {path.name: _sha256(path) for path in sorted({*written, *folder.glob("*.json")}) if path.name != NOTE}
    note = {"repository": repository, "revision": source.revision, "read": sums, "written": made}
    files.write_json(note, folder / NOTE)
    shutil.rmtree(download, ignore_errors=True)
    return True


def _is_whole(folder: Path, repository: str) -> bool:
    """Whether an earlier call filled the folder and every byte is still what it wrote."""
    try:
        note = json.loads(files.regular(folder / NOTE).read_text(encoding="utf-8"))
        if note["repository"] != repository:
            raise ConfigError(
                f"{folder} holds {note['repository']}, not {repository}: name another folder or delete it"
            )
        return all(
            _sha256(files.regular(files.inside(folder, file))) == digest for file, digest in note["written"].items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, DataError):
        return False


def _choose(name: str, repository: str, files: dict[str, str]) -> tuple[list[str], list[str]]:
    """The files to take: config.json and the tokenizer's; the weights, safetensors rather than torch's."""
    texts = ["config.json", *(file for file in tokenizers.FILES[encoders.KINDS[name]] if file in files)]
    for module, suffix in ((safetensors_io, ".safetensors"), (torch_bin, ".bin")):
        if module.INDEX in files:
            stem = module.WHOLE.removesuffix(suffix) + "-"
            return texts, [module.INDEX, *sorted(f for f in files if f.startswith(stem) and f.endswith(suffix))]
        if module.WHOLE in files:
            return texts, [module.WHOLE]
    raise DataError(f"{repository} has no {safetensors_io.WHOLE} and no {torch_bin.WHOLE}, but: {', '.join(files)}")


def _names(name: str, folder: Path, arrays: dict[str, Any]) -> dict[str, str]:
    find = huggingface.clip_text_names if encoders.KINDS[name] == "clip" else huggingface.t5_names
    return find(arrays, encoders.read_config(folder, name))


def _local(folder: Path) -> Source:
    if not folder.is_dir():
        raise ConfigError(f"text.offline: {folder} is not a folder: copy the repository's files there")
    found = {path.name: "" for path in sorted(folder.iterdir()) if path.is_file()}
    return Source(str(folder), "offline", found, lambda file: files.inside(folder, file))


def _hub(repository: str, endpoint: str, download: Path) -> Source:
    try:
        from huggingface_hub import HfApi, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers
    except ImportError as error:
        raise ConfigError(f"fetching needs the extra `text`: pip install -e '.[text]' ({error})") from error
    where = endpoint or os.environ.get("HF_ENDPOINT", "https://huggingface.co")

    def reached(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # the client's own errors, those of the network and of a full disk
            raise ConfigError(
                f"{repository} at {where}: {' '.join(str(error).split()) or repr(error)}; the same command goes on with what "
                "is there. Without a way to the hub, set text.endpoint to a mirror or text.offline to a copy"
            ) from error

    info = reached(lambda: HfApi(endpoint=where).model_info(repository, files_metadata=True))
    place = f"{repository} at {where}"
    with files.refused(f"{place}: its answer is not a hub's", TypeError, AttributeError):
        listed = {item.rfilename: item for item in info.siblings if re.fullmatch(_PLAIN, item.rfilename)}
        stated = {
            name: f"sha256:{item.lfs.sha256}" if item.lfs else f"git:{item.blob_id}" for name, item in listed.items()
        }
        if not re.fullmatch(_PLAIN, info.sha):
            raise DataError(f"{place}: the revision is {info.sha!r}, expected a name: ask another mirror")

    def get(file):
        # Not hf_hub_download: what that has of a file when it is killed it throws away, and these have 10 GB and more.
        target = download / info.sha / file
        partial = target.with_name(file + ".part")
        if not target.is_file():
            partial.parent.mkdir(parents=True, exist_ok=True)
            url = hf_hub_url(repository, file, revision=info.sha, endpoint=where)
            with open(partial, "ab") as f:
                size, headers = f.seek(0, os.SEEK_END), build_hf_headers()
                reached(lambda: http_get(url, f, resume_size=size, headers=headers, expected_size=listed[file].size))
            os.replace(partial, target)
        return target

    return Source(place, info.sha, stated, get)


def _checked(path: Path, stated: str, what: str) -> str:
    """The file's sha256. DataError, and the file deleted, where it is not what the hub states."""
    kind, _, digest = stated.partition(":")
    own = found = _sha256(path)
    if kind == "git":
        blob = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        found = fingerprint.hexdigest([path], blob)
    if kind and found != digest:
        path.unlink()
        raise DataError(
            f"{what} came damaged: its {kind} is {found}, the hub states {digest}; the same command tries again"
        )
    return own


def _sha256(path: Path) -> str:
    return fingerprint.hexdigest([path], hashlib.sha256())
