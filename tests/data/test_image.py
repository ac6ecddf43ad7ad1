import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from moviegen.data import image
from moviegen.errors import DataError
from tests.data import odd


def write_png(path, height, width, bits, colour, rows, transparent=b""):
    header = odd.chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = odd.chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    extra = odd.chunk(b"tRNS", transparent) if transparent else b""
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + extra + body + odd.chunk(b"IEND", b""))
    return path


def test_sixteen_bits_keep_their_high_byte(tmp_path):
    levels = np.linspace(0, 65535, 64).astype(">u2")
    grey = write_png(tmp_path / "grey.png", 2, 64, 16, 0, [levels.tobytes()] * 2)
    want = (levels >> 8).astype(np.uint8)[None, :, None].repeat(2, 0).repeat(3, 2)
    np.testing.assert_array_equal(image.read(grey), want)
    colours = np.stack([levels, levels[::-1], levels // 2], -1).astype(">u2")
    colour = write_png(tmp_path / "colour.png", 2, 64, 16, 2, [colours.tobytes()] * 2)
    np.testing.assert_array_equal(image.read(colour)[0], colours >> 8)
    opacity = np.where(np.arange(64) % 2, 65535, 0).astype(">u2")
    seen = write_png(tmp_path / "seen.png", 2, 64, 16, 4, [np.stack([levels, opacity], -1).astype(">u2").tobytes()] * 2)
    np.testing.assert_array_equal(image.read(seen)[0, :, 0], np.where(opacity, levels >> 8, 255))


@pytest.mark.parametrize(
    "bits, colour, row, transparent, want",
    [
        (8, 0, bytes([0, 90, 200]), struct.pack(">H", 90), [[0] * 3, [255] * 3, [200] * 3]),
        (16, 0, struct.pack(">3H", 0, 30000, 40000), struct.pack(">H", 30000), [[0] * 3, [255] * 3, [156] * 3]),
        (8, 2, bytes([9, 9, 9, 1, 2, 3, 8, 8, 8]), struct.pack(">3H", 1, 2, 3), [[9] * 3, [255] * 3, [8] * 3]),
        (1, 0, bytes([0b01000000]), struct.pack(">H", 0), [[255] * 3, [255] * 3, [255] * 3]),
    ],
)
def test_a_colour_that_stands_for_nothing_is_white(tmp_path, bits, colour, row, transparent, want):
    path = write_png(tmp_path / "a.png", 1, 3, bits, colour, [row], transparent)
    assert image.read(path).tolist() == [want]


def test_other_kinds_of_pictures(tmp_path):
    scene = odd.scene()
    for name, mode in (("a.bmp", "RGB"), ("c.webp", "RGB"), ("d.jpg", "CMYK"), ("e.jpg", "L")):
        Image.fromarray(scene).convert(mode).save(tmp_path / name, lossless=True)
        want = scene if mode != "L" else np.asarray(Image.fromarray(scene).convert("L"))[..., None].repeat(3, -1)
        np.testing.assert_allclose(image.read(tmp_path / name)[:, ::31].astype(int), want[:, ::31], atol=5)


def test_whatever_the_parsers_raise_is_a_bad_file(tmp_path):
    Image.fromarray(odd.scene()).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    text = odd.chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 27)))  # a bomb beside the pixels
    (tmp_path / "a.png").write_bytes(content[:33] + text + content[33:])
    with pytest.raises(DataError, match="a.png: damaged.*MAX_TEXT_CHUNK"):
        image.read(tmp_path / "a.png")
    Image.fromarray(odd.scene()).save(tmp_path / "b.png", format="TIFF")
    with pytest.raises(DataError, match="not one of PNG"):
        image.read(tmp_path / "b.png")
