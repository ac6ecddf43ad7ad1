"""Pictures: whatever depth and transparency Pillow finds in them, as 8-bit RGB, upright."""

from pathlib import Path

import numpy as np

from moviegen.data import view
from moviegen.errors import DataError
from moviegen.storage import files

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # nothing else is opened: for EPS Pillow would start another program


def read(path: Path) -> np.ndarray:
    """Returns uint8 (h w 3) with the camera's orientation applied, over white where transparent. Raises DataError."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=_FORMATS) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16-bit grey, which Pillow clips; its high byte, as Pillow takes of RGB
                grey = np.asarray(image)
                seen = np.where(grey == image.info.get("transparency"), 255, grey >> 8)
                return seen.astype(np.uint8)[..., None].repeat(3, axis=2)
            if image.has_transparency_data:
                return view.over_white(np.asarray(image.convert("RGBA")))
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # whatever its parsers stumble over, a bomb's size among it
        raise DataError(
            f"{path}: damaged, truncated or not one of {', '.join(_FORMATS)} ({files.reason(error)})"
        ) from error
