"""What a generator's weights were trained with and sampling must repeat: noted in each checkpoint, compared ever after."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moviegen import config as configs
from moviegen.data.latent_cache import Statistics
from moviegen.errors import ConfigError
from moviegen.models.tae import weights as tae_weights
from moviegen.models.transformer import shapes
from moviegen.text import encoders, source, store

# Free to differ: precision, how weights were drawn, tables that grow from stage to stage.
_FREE = ("compute_dtype", "weight_std", "position_std", "position_lengths")
_TOLD = ("tell_fps", "camera")  # keys of the section `text`: what comes before a prompt
# What a next stage must have as the stage before had it: of other latents or texts its weights know nothing.
STAGE = ("model.", "tae.", "tae_weights", "text.encoders", "text.tell_fps")
# An encoder that the model did not have before, whose parameters are drawn; where they cannot be, they are missed by name.
_NEW_ENCODER = re.compile(r"model\.text_dims\.\w+: 0 -> ")
# Noise between the statistics of two sets of clips, in units of what the model sees: with it the loss does not move.
_NOISE = 0.02


def describe(config: Any, autoencoder: str | None, online: bool = False) -> dict[str, Any]:
    """Model, autoencoder (its settings and the checksum of its weights) and text of a config, as JSON holds them.

    Embeddings are those of the stores; in sampling (`online`) of the encoders that `text.encoders` names, which are read
    once through, and the rate told is `sample.fps`, not `data.fps`. What cannot be known, such as who made the seed's npz
    files, is None or left out.
    """
    plain = configs.to_plain(config)
    model = {key: value for key, value in plain["model"].items() if key not in _FREE}
    told = {key: value for key, value in plain.get("text", {}).items() if key in _TOLD}
    section = config.sample if online else config.data
    if told.get("tell_fps") and section.num_frames > 1:
        told["fps"] = float(section.fps) or None  # None: each file's own
    text = {"encoders": _encoders(config, online), **({} if source.is_toy(config) else told)}
    return {"model": model, "tae": tae_weights.settings(config.tae), "tae_weights": autoencoder, "text": text}


def noted(meta: Mapping) -> dict[str, Any]:
    """What the meta of a checkpoint or an export says of `describe`: the model is all that exports once told."""
    return {key: meta[key] for key in ("model",) if key in meta} | (meta.get("trained_with") or {})


def check(noted: Mapping | None, now: Mapping, where: str | Path, refused: tuple[str, ...] = ("model.",)) -> list[str]:
    """Returns a line for all that differs from what the weights in `where` were trained with; none where nothing does.

    Raises ConfigError for what begins with one of `refused`: with it the weights would compute something else. What one
    of both does not say is not compared.
    """
    if not noted:
        return [f"{where} does not say what its weights were trained with (an older checkpoint): nothing is compared"]
    differs = configs.changes(_said(noted, now), _said(now, noted))
    wrong = [line for line in differs if line.startswith(refused) and not _NEW_ENCODER.match(line)]
    if wrong:
        made = any(line.startswith(("tae_weights", "text.encoders")) for line in wrong)
        again = ", and use latents and embeddings of the same weights (data.latent_folder, data.text_folders)" * made
        raise ConfigError(
            f"the weights in {where} were trained with other settings ({'; '.join(wrong)}): change them back{again}"
        )
    hint = "the weights know only the former; use it again unless you mean to change it"
    return [f"{where} was trained with something else ({'; '.join(differs)}): {hint}"] if differs else []


def scaled(meta: Mapping, tae: Any, channels: int, where: str | Path) -> tuple[dict[str, Any], list[str]]:
    """Returns the shift and scale of latents that weights of this meta were trained with, and a line where it has none.

    They are then those of the config's section `tae`, as the seed's are. DataError for wrong ones.
    """
    keys = ("latent_shift", "latent_scale")
    if any(key in meta for key in keys):
        return {key: [*v] for key, v in tae_weights.latent_statistics(meta, channels, Path(where)).items()}, []
    taken = {key: np.broadcast_to(tae[key], channels).tolist() for key in keys}
    return taken, [f"{where} does not say how its latents were scaled; taken as config.tae says"]


def statistics(theirs: Statistics, own: Statistics) -> list[str]:
    """Returns a line where the latents' statistics that weights were trained with are not about those of the data."""
    (shift, scale), (own_shift, own_scale) = ((np.asarray(x, np.float64) for x in pair) for pair in (theirs, own))
    off, ratio = (own_shift - shift) * scale, own_scale / scale
    if max(abs(off).max(), abs(ratio - 1).max()) <= _NOISE:
        return []
    shifts, scales = (f"{a.mean():.3g}, the data's {b.mean():.3g}" for a, b in ((shift, own_shift), (scale, own_scale)))
    return [
        f"latents are normalized as the weights were trained with: shift {shifts} (means over channels; by channel "
        f"{off.min():+.2f} to {off.max():+.2f} deviations off), scale {scales} ({ratio.min():.2f} to {ratio.max():.2f} times)"
    ]


def _encoders(config: Any, online: bool) -> dict[str, Any]:
    if source.is_toy(config):
        return dict.fromkeys(shapes.encoders(config.model), "toy")
    found, named = {}, config.text.encoders if online and "text" in config else {}
    for name, folder in source.folders(config).items():
        if named.get(name):
            files = encoders.look(config, name)
            made = {"weights": encoders.digest(files), "tokenizer": files.tokenizer.digest}
            found[name] = made | {"budget": config.text.budgets[name]}
        elif folder and store.is_store(folder):
            found[name] = {key: store.fingerprint(folder).get(key) for key in ("weights", "tokenizer", "budget")}
    return found


def _said(one: Mapping, other: Mapping) -> dict[str, Any]:
    """`one` without what is unknown in either."""
    return {
        key: _said(value, other[key]) if isinstance(value, Mapping) and isinstance(other[key], Mapping) else value
        for key, value in one.items()
        if value is not None and other.get(key) is not None
    }
