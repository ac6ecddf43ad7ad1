"""What each text encoder is given of a prompt (paper, 3.5 and 3.6)."""

import re
import unicodedata
from typing import Any

from moviegen.errors import ConfigError

# The sixteen classes of the paper's camera-motion classifier.
CAMERA_MOTIONS = (
    *("zoom in", "zoom out", "push in", "pull out", "pan left", "pan right", "truck left", "truck right"),
    *("tilt up", "tilt down", "pedestal up", "pedestal down", "arc", "tracking", "static", "handheld"),
)
# Text to be drawn stands between straight or curly double quotes, guillemets or corner brackets. Single quotes are
# left out: they are apostrophes as well.
_QUOTED = re.compile(r'"([^"]*)"|“([^“”]*)”|«([^«»]*)»|「([^「」]*)」')


def prepare(prompt: str, fps: float = 0, camera: str = "", image: bool = False) -> dict[str, str]:
    """The text for each encoder: ul2 and metaclip get the prompt with its prefixes, byt5 the quoted text to be drawn.

    `FPS-16 ` comes first, when fps is not 0, then the camera motion as a sentence; the paper leaves the order open. The
    prompt of an image has neither. An empty prompt gives every encoder an empty text, the unconditional one of guidance.
    Raises ConfigError for an unknown camera motion.
    """
    prompt = clean(prompt)
    if camera and camera not in CAMERA_MOTIONS:
        raise ConfigError(f"camera motion {camera!r} is not one of: {', '.join(CAMERA_MOTIONS)}")
    drawn = " ".join(filter(None, ("".join(groups).strip() for groups in _QUOTED.findall(prompt))))
    prefixed = bool(prompt) and not image
    rate = f"FPS-{whole(fps)} " if fps and prefixed else ""
    motion = f"{camera.capitalize()}. " if camera and prefixed else ""
    return {"ul2": rate + motion + prompt, "metaclip": rate + motion + prompt, "byt5": drawn}


def whole(fps: float) -> int:
    """A rate as it is told: 29.97 is 30, so that a model sees few different ones."""
    return max(1, round(fps))


def of_request(prompt: str, config: Any) -> dict[str, str]:
    """The texts of a prompt that is to be sampled as `config.sample` says: a single frame is an image."""
    settings = config.get("text")  # without it, in experiments of embedded sets and the seed's files, nothing is told
    fps, camera = (settings.tell_fps and config.sample.fps, settings.camera) if settings else (0, "")
    return prepare(prompt, fps, camera, image=config.sample.num_frames == 1)


def clean(text: str) -> str:
    """Unicode composed (NFC: the same letter is the same bytes), control and invisible characters out, spaces single."""
    text = unicodedata.normalize("NFC", text)
    if not text.isprintable():  # character by character only where one may go: a million captions would take minutes
        kept = (c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co") or c in "\t\n\r\u200d")
        text = "".join(kept)
    return " ".join(text.split())
