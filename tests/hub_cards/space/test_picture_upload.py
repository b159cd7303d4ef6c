"""What strangers send: read, or refused with a message that says what to do; nothing large is decoded."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def upload():
    import picture_upload

    return picture_upload


def saved(path, image=None, **options):
    (image or Image.effect_noise((64, 48), 60)).save(path, **options)
    return path


def png_of_size(width, height):
    """A PNG whose head promises that many pixels, and whose data are a few bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
def test_known_formats_are_read(upload, tmp_path, suffix):
    image = upload.read_upload(saved(tmp_path / f"a.{suffix}"))
    assert image.mode == "RGB" and image.size == (64, 48)


def test_a_picture_is_upright_and_of_an_animation_the_first(upload, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    assert upload.read_upload(saved(tmp_path / "a.jpg", exif=exif)).size == (48, 64)
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(upload.read_upload(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


REFUSED = {
    "text.png": (b"no picture", "This is no JPEG, PNG, WEBP, BMP, GIF or TIFF file"),
    "empty.png": (b"", "This is no JPEG"),
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', "This is no JPEG"),
    "page.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n", "This is no JPEG"),
    "large.png": (png_of_size(8000, 6000), "has 8000 x 6000 pixels; at most 25,000,000"),
    "bomb.png": (png_of_size(60000, 60000), "too many pixels; at most 25,000,000"),
    "thin.png": (png_of_size(2000, 20), "2000 x 20 pixels; a side must have 16 at least"),
    "tiny.png": (png_of_size(8, 8), "8 x 8 pixels; a side must have 16 at least"),
    "cut.png": (png_of_size(640, 480), "damaged or was cut off"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_with_a_reason(upload, tmp_path, name):
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    with pytest.raises(upload.UploadRefused) as refused:
        upload.read_upload(tmp_path / name)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message in refused.value.message and str(tmp_path) not in refused.value.message
    assert most < 20_000_000


def test_a_cut_off_jpeg_and_a_file_that_is_too_large(upload, tmp_path, monkeypatch):
    whole = io.BytesIO()
    Image.effect_noise((256, 256), 90).save(whole, format="JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[:2000])
    with pytest.raises(upload.UploadRefused, match="damaged or was cut off"):
        upload.read_upload(tmp_path / "cut.jpg")
    monkeypatch.setattr(upload, "MAX_FILE_BYTES", 1000)
    with pytest.raises(upload.UploadRefused, match="bytes; at most 1,000 are taken"):
        upload.read_upload(saved(tmp_path / "a.png"))


@pytest.mark.parametrize(
    "sent, name",
    [
        ("bird.png", "bird.png"),
        ("../../etc/bird.png", "bird.png"),
        ("a" * 300 + ".png", None),
        ("鳥" * 200 + ".png", None),
        ("a\nb\0c/.png", "picture.png"),
        ("b\ni\0rd.png", "bird.png"),
    ],
)
def test_names_become_such_that_files_can_bear_them(upload, tmp_path, sent, name):
    field = upload.PictureField(render=False)
    field.GRADIO_CACHE = str(tmp_path)
    saved(tmp_path / "x.png")
    found = field.preprocess(field.data_model(path=str(tmp_path / "x.png"), orig_name=sent)).name
    assert name is None or found == name
    assert len(found.encode()) <= 110
    (tmp_path / f"{found}-parts.json").write_text("it can be written")


def test_no_stub_file_is_left_beside_the_source(upload):
    from hub_cards.demo import SPACE

    assert not list(SPACE.glob("*.pyi"))
    field = upload.PictureField(render=False)
    assert field.get_block_name() == "image" and type(field) is upload.PictureField
