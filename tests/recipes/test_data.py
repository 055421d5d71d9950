"""Every way to load images, on small files made here; and files that are broken or hostile."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genmod.recipes import RecipeError, data, image_files

RNG = np.random.default_rng(0)
MNIST = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8)
CIFAR = RNG.integers(0, 256, (10, 3072), dtype=np.uint8)


def idx(images: np.ndarray) -> bytes:
    return struct.pack(">4I", 0x803, *images.shape) + images.tobytes()


def save_image(path: Path, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(path)


def as_bytes(images: torch.Tensor) -> set[bytes]:
    """The images as a set: loading shuffles."""
    return {image.tobytes() for image in (images * 255).round().to(torch.uint8).numpy()}


def load(path: Path) -> tuple[data.ImageSet, list[str]]:
    lines: list[str] = []
    return data.load(str(path), report=lines.append), lines


def check(images: data.ImageSet) -> None:
    assert images.images.dtype == torch.float32
    assert images.images.is_contiguous()
    assert 0 <= images.images.min() <= images.images.max() <= 1
    assert len(images.train) + len(images.test) == len(images.images)
    assert len(images.test) == images.held_out > 0


# ------------------------------------------------------------------------------------------------ shipped with packages


def test_digits() -> None:
    images = data.load("digits")
    check(images)
    assert images.images.shape == (1797, 1, 8, 8)
    assert torch.equal(images.images * 16, (images.images * 16).round())


def test_photos_come_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket", None)
    images = data.load("photos")
    check(images)
    assert images.images.shape[1:] == (3, 32, 32)
    assert len(images.train) > 5000
    assert len(images.test) > 30
    assert torch.equal(images.images, data.load("photos").images)


def test_no_pixels_of_held_out_photo_patches_are_trained_on() -> None:
    images = data.load("photos")

    def rows(patches: torch.Tensor) -> set[bytes]:
        # Red, 8 pixels wide, from every 8th row: the grid on which patches are cut. Flat pieces prove nothing.
        pieces = patches[:, 0, ::8].unfold(2, 8, 8).flatten(0, 2)
        return {piece.numpy().tobytes() for piece in pieces[pieces.std(1) > 0.1]}

    assert len(rows(images.test)) > 100
    assert not rows(images.test) & rows(images.train)


# ----------------------------------------------------------------------------------------------------- MNIST and CIFAR


@pytest.mark.parametrize("folder", [".", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist(tmp_path: Path, folder: str, suffix: str) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if suffix else bytes
    (tmp_path / folder / f"train-images-idx3-ubyte{suffix}").write_bytes(pack(idx(MNIST[:15])))
    (tmp_path / folder / f"t10k-images-idx3-ubyte{suffix}").write_bytes(pack(idx(MNIST[15:])))
    (tmp_path / folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 15) + bytes(15))
    images, _ = load(tmp_path)
    check(images)
    assert images.images.shape == (20, 1, 28, 28)
    assert as_bytes(images.train) == {image.tobytes() for image in MNIST[:15]}
    assert as_bytes(images.test) == {image.tobytes() for image in MNIST[15:]}


def test_mnist_file_kept_packed_and_unpacked_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(MNIST))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(MNIST)))
    images, _ = load(tmp_path)
    assert len(images.images) == 20
    assert images.held_out == 2


def test_one_mnist_file(tmp_path: Path) -> None:
    (tmp_path / "train-images.idx3-ubyte").write_bytes(idx(MNIST))
    images, _ = load(tmp_path / "train-images.idx3-ubyte")
    assert len(images.images) == 20


@pytest.mark.parametrize(
    "content",
    [b"", idx(MNIST)[:-1], b"\0" * 100, struct.pack(">4I", 0x803, 10, 1 << 20, 1 << 20)],
    ids=["empty", "cut off", "wrong magic", "huge"],
)
def test_broken_mnist_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(RecipeError, match="train-images-idx3-ubyte is not a whole"):
        load(tmp_path)


def test_broken_gzip_is_named(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(MNIST))[:-30])
    with pytest.raises(RecipeError, match=r"train-images-idx3-ubyte\.gz is not a whole"):
        load(tmp_path)


def test_long_sets_are_cut_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "LIMIT", 7)
    (tmp_path / "data_batch_1.bin").write_bytes(np.insert(CIFAR, 0, 3, axis=1).tobytes())
    images, lines = load(tmp_path)
    assert len(images.images) == 7
    assert "first 7 images" in lines[0]


def test_cifar_binary(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "data_batch_1.bin").write_bytes(np.insert(CIFAR[:6], 0, 3, axis=1).tobytes())
    (folder / "test_batch.bin").write_bytes(np.insert(CIFAR[6:], 0, 3, axis=1).tobytes())
    images, _ = load(tmp_path)
    check(images)
    assert images.images.shape == (10, 3, 32, 32)
    assert as_bytes(images.test) == {image.tobytes() for image in CIFAR[6:]}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
def test_cifar_pickle(tmp_path: Path, protocol: int, order: str) -> None:
    batch = {b"data": np.asarray(CIFAR, order=order), b"labels": [1, 2], b"filenames": [b"a.png"], b"batch_label": b"x"}  # type: ignore[call-overload]
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol))
    images, _ = load(tmp_path)
    assert as_bytes(images.images) == {image.tobytes() for image in CIFAR}


def test_cifar_pickle_of_python_2(tmp_path: Path) -> None:
    """The published files: protocol 2, byte strings where Python 3 has text, numpy's modules by their old names."""
    raw = CIFAR[:2].tobytes()
    content = (
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tbs."
    )
    (tmp_path / "data_batch_1").write_bytes(content)
    images, _ = load(tmp_path)
    assert as_bytes(images.images) == {image.tobytes() for image in CIFAR[:2]}


class Hostile:
    def __init__(self, function: object, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


@pytest.mark.parametrize("inside", ["alone", "labels"])
def test_hostile_pickle_is_refused_and_not_run(tmp_path: Path, inside: str) -> None:
    import os

    mark = tmp_path / "was-here"
    hostile = Hostile(os.mkdir, str(mark))
    batch = hostile if inside == "alone" else {b"data": CIFAR, b"labels": hostile}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch))
    with pytest.raises(
        RecipeError, match=r"data_batch_1 is not a CIFAR-10 batch: refused: it asks for (posix|nt)\.mkdir"
    ):
        load(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "batch",
    [
        Hostile(eval, "1"),
        {b"data": np.array([{}], dtype=object)},
        {b"data": np.zeros((2, 3072))},
        {b"data": b"text"},
        {b"pixels": CIFAR},
        [CIFAR],
        {b"data": CIFAR[:, :100]},
        {b"data": np.str_("x")},
    ],
    ids=["eval", "objects", "floats", "no array", "no data", "list", "wrong size", "numpy scalar"],
)
def test_other_pickles_are_refused(tmp_path: Path, batch: object) -> None:
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch))
    with pytest.raises(RecipeError, match="data_batch_1 is not a CIFAR-10 batch"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_1.bin"])
@pytest.mark.parametrize("content", [b"\x80", b"not a pickle", CIFAR.tobytes()[:5000]])
def test_broken_cifar_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=f"{name} is not a CIFAR-10 batch"):
        load(tmp_path)


# -------------------------------------------------------------------------------------------------- a folder of images


def test_folder_of_images(tmp_path: Path) -> None:
    for number, (suffix, mode) in enumerate(
        [("png", "RGB"), ("jpg", "L"), ("gif", "P"), ("webp", "RGBA"), ("bmp", "1")]
    ):
        save_image(tmp_path / f"deeper/{number}" / f"image.{suffix}", mode, size=(40 + number, 300))
    images, lines = load(tmp_path)
    check(images)
    assert images.images.shape == (5, 3, 32, 32)
    assert not lines


def test_broken_files_are_named_counted_and_skipped(tmp_path: Path) -> None:
    for number in range(3):
        save_image(tmp_path / f"{number}.png")
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "not-a.jpg").write_bytes(b"text")
    (tmp_path / "notes.txt").write_text("not an image, and nobody said it was")
    (tmp_path / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF\n")
    images, lines = load(tmp_path)
    assert len(images.images) == 3
    assert [line.split(":")[0] for line in lines[:-1]] == [
        f"skipped {tmp_path / name}" for name in ("cut.png", "not-a.jpg", "program.eps")
    ]
    assert "skipped 3 broken or refused image files, read 3" in lines[-1]


def test_decompression_bomb_is_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    save_image(tmp_path / "b.png")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png")
    images, lines = load(tmp_path)
    assert len(images.images) == 2
    assert "bomb.png" in lines[0]
    assert "decompression bomb" in lines[0]


def test_many_broken_files_are_not_all_named(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    save_image(tmp_path / "b.png")
    for number in range(30):
        (tmp_path / f"{number}.jpg").write_bytes(b"text")
    _, lines = load(tmp_path)
    assert len(lines) == image_files.NAMED + 1


def test_transparent_16_bit_and_turned_images(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (image_files.read_image(tmp_path / "clear.png", 32) == 255).all()
    ramp = np.linspace(0, 65535, 32 * 32, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    deep = image_files.read_image(tmp_path / "deep.png", 32)
    assert (deep[0].min(), deep[0].max()) == (0, 255)
    assert abs(float(deep.mean()) - 127.5) < 2
    left = np.zeros((32, 32, 3), np.uint8)
    left[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right: turn a quarter clockwise
    Image.fromarray(left).save(tmp_path / "turned.png", exif=exif)
    turned = image_files.read_image(tmp_path / "turned.png", 32)
    assert (turned[:, :16] == 255).all()
    assert (turned[:, 16:] == 0).all()


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no images in"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "cut.png").write_bytes(b"text")
    with pytest.raises(RecipeError, match=r"2 files: 1 broken or refused images, 1 not images\); wanted"):
        load(tmp_path)
    with pytest.raises(RecipeError, match="no such file or folder"):
        load(tmp_path / "absent")
    save_image(tmp_path / "one.png")
    with pytest.raises(RecipeError, match="wanted: at least 2"):
        load(tmp_path)


# ------------------------------------------------------------------------------------------------------ labels and size


def test_digits_have_labels_that_go_with_the_images() -> None:
    images = data.load("digits")
    assert images.labels is not None and images.train_labels is not None and images.test_labels is not None
    assert images.classes == tuple("0123456789")
    assert len(images.test_labels) == images.held_out
    means = torch.stack([images.train[images.train_labels == digit].mean(0) for digit in range(10)])
    nearest = torch.cdist(images.test.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == images.test_labels).float().mean() > 0.8


def test_mnist_labels(tmp_path: Path) -> None:
    labels = np.arange(20, dtype=np.uint8) % 7
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(MNIST))
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(struct.pack(">2I", 0x801, 20) + labels.tobytes())
    images, _ = load(tmp_path)
    assert images.labels is not None
    expected = {image.tobytes(): label for image, label in zip(MNIST, labels, strict=True)}
    for image, label in zip((images.images * 255).round().to(torch.uint8).numpy(), images.labels, strict=True):
        assert expected[image.tobytes()] == label
    path.write_bytes(struct.pack(">2I", 0x801, 20) + labels.tobytes()[:-1])
    assert load(tmp_path)[0].labels is None


@pytest.mark.parametrize("suffix", ["", ".bin"])
def test_cifar_labels(tmp_path: Path, suffix: str) -> None:
    labels = np.arange(10)
    rows = np.concatenate([labels[:, None].astype(np.uint8), CIFAR], axis=1)
    batch = pickle.dumps({b"data": CIFAR, b"labels": labels.tolist()})
    (tmp_path / f"data_batch_1{suffix}").write_bytes(rows.tobytes() if suffix else batch)
    images, _ = load(tmp_path)
    assert images.labels is not None
    for image, label in zip((images.images * 255).round().to(torch.uint8).numpy(), images.labels, strict=True):
        assert image.tobytes() == CIFAR[label].tobytes()


def test_folders_of_images_are_classes(tmp_path: Path) -> None:
    for name, level in (("dark", 0), ("light", 255)):
        for number in range(3):
            path = tmp_path / name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("L", (32, 32), level).save(path)
    images, _ = load(tmp_path)
    assert images.classes == ("dark", "light")
    assert images.labels is not None
    assert torch.equal(images.labels, images.images.mean((1, 2, 3)).long())
    save_image(tmp_path / "beside.png")
    assert load(tmp_path)[0].labels is None
    assert load(tmp_path / "dark")[0].labels is None


def test_size(tmp_path: Path) -> None:
    assert data.load("digits", size=16).images.shape == (1797, 1, 16, 16)
    save_image(tmp_path / "a.png", size=(100, 80))
    save_image(tmp_path / "b.png", size=(100, 80))
    assert data.load(str(tmp_path), size=48).images.shape == (2, 3, 48, 48)
    with pytest.raises(RecipeError, match="--size: got 3"):
        data.load("digits", size=3)
