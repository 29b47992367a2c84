"""Data in the genuine formats, and what is said about files that are not."""

import gzip
import io
import pickle
import struct
import tarfile
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tensorflow as tf
from PIL import Image
from sparse_transformer import config, data
from sparse_transformer.batches import batch_at, pipeline
from sparse_transformer.formats import DataError, audio
from sparse_transformer.formats.cifar_pickle import load_batch

TEXT = replace(config.load("enwik8_small"), grid=(4, 16))
CIFAR = config.load("cifar10_small")
IMAGENET = config.load("imagenet64_small")
AUDIO = replace(config.load("music_small"), grid=(8, 16))
FASHION = config.load("fashion")


# Text


def test_enwik8_splits(tmp_path):
    """A file with holes has the right length; the splits are 90M, 5M and 5M."""
    path = tmp_path / "enwik8"
    with path.open("wb") as file:
        file.truncate(10**8)
        for mark in (0, 90_000_000, 95_000_000):
            file.seek(mark)
            file.write(b"x")
    sizes = []
    for split in data.SPLITS:
        tokens = data.load(TEXT, str(path), split).tokens
        assert tokens[0] == ord("x")
        sizes.append(len(tokens))
    assert sizes == [90_000_000, 5_000_000, 5_000_000]


def test_truncated_enwik8(tmp_path):
    path = tmp_path / "enwik8"
    path.write_bytes(bytes(1000))
    with pytest.raises(
        DataError, match=r"enwik8: 1,000 bytes instead of 100,000,000\. Wanted: .*mattmahoney"
    ):
        data.load(TEXT, str(path))


@pytest.mark.parametrize(
    "content, problem",
    [(b"PK\3\4 and more", "zip archive; unpack it"), (b"abc", "only 3 tokens"), (b"", "only 0 tokens")],
)
def test_text_that_will_not_do(tmp_path, content, problem):
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"text: .*{problem}"):
        data.load(TEXT, str(path))


def test_a_dictionary_is_read_with_its_markup(tmp_path):
    """dictzip is gzip with a field of its own in the header."""
    text = b"Zythum, n.\n   A kind of {malt} beverage. [1913 Webster]\n" * 100
    packed = bytearray(gzip.compress(text))
    packed[3] |= 4  # FEXTRA
    packed[10:10] = struct.pack("<H", 6) + b"RA\2\0\1\0"
    path = tmp_path / "a.dict.dz"
    path.write_bytes(packed)
    tokens = np.concatenate([data.load(TEXT, str(path), split).tokens for split in data.SPLITS])
    assert tokens.tobytes() == text
    path.write_bytes(packed[:-20])
    with pytest.raises(DataError, match=r"a\.dict\.dz: cannot be unpacked .*examples/fetch\.py gcide --out"):
        data.load(TEXT, str(path))


def test_a_dictionary_that_unpacks_to_more_than_any_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sparse_transformer.formats.text.LARGEST", 1000)
    path = tmp_path / "a.dict.dz"
    path.write_bytes(gzip.compress(bytes(1001)))
    with pytest.raises(DataError, match="unpacks to more than 1,000 bytes"):
        data.load(TEXT, str(path))


# Fashion-MNIST


def idx(array, kind=8):
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """Image i is i % 251 in its first pixel and its row elsewhere; the test images are not packed."""
    root = tmp_path_factory.mktemp("fashion")
    images = np.broadcast_to(np.arange(28, dtype=np.uint8)[:, None], (60_000, 28, 28)).copy()
    images[:, 0, 0] = np.arange(60_000) % 251
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images), 1))
    (root / "t10k-images-idx3-ubyte").write_bytes(idx(images[:10_000]))
    return root


def test_fashion(fashion):
    sources = data.load_splits(FASHION, str(fashion))
    assert {split: source.size for split, source in sources.items()} == {
        "train": 57_000,
        "valid": 3_000,
        "test": 10_000,
    }
    images = sources["test"].examples(np.array([7, 252]), 0)
    assert images.shape == (2, 784) and images[:, 0].tolist() == [7, 1]
    np.testing.assert_array_equal(images[0, 1:], np.repeat(np.arange(28), 28)[1:])
    held = np.concatenate([sources[split].chosen for split in ("train", "valid")])
    assert sorted(held) == list(range(60_000))


def test_fashion_splits_want_their_own_file_alone(fashion, tmp_path):
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes((fashion / "t10k-images-idx3-ubyte").read_bytes())
    assert data.load(FASHION, str(tmp_path), "test").size == 10_000
    with pytest.raises(
        DataError, match=r"train-images-idx3-ubyte\.gz is missing\. Wanted: .*fetch\.py fashion"
    ):
        data.load(FASHION, str(tmp_path))


def test_fashion_is_not_built_in():
    with pytest.raises(
        DataError, match=r"--data: Fashion-MNIST is not built in\. Wanted: .*fetch\.py fashion --out"
    ):
        data.load(FASHION)


def test_fashion_in_another_grid(fashion):
    with pytest.raises(
        DataError, match=r"images of 28 x 28 for grid=\(14, 14, 1\)\. Wanted: grid=\(28, 28, 1\)"
    ):
        data.load(replace(FASHION, grid=(14, 14, 1)), str(fashion))


@pytest.mark.parametrize(
    "content, problem",
    [
        (idx(np.zeros((3, 28, 28), np.uint8)), r"an array of \[3, 28, 28\] instead of \[10000, 28, 28\]"),
        (idx(np.zeros(4, np.uint8))[:-1], "its header says 4 bytes, and there are 3"),
        (idx(np.zeros(4, np.uint8)) + b"x", "its header says 4 bytes, and there are more"),
        (idx(np.zeros(4, np.uint8), kind=13), "it begins with 0000 0d 01, not with 0000 08 and a number"),
        (b"\x89PNG and more", "it begins with 8950 4e 47"),
        (struct.pack(">HBB2I", 0, 8, 2, 2**31, 2**31), "says 4,611,686,018,427,387,904 bytes, more than"),
        (b"", "requires a buffer of 4 bytes"),
        (gzip.compress(idx(np.zeros(400, np.uint8)), mtime=0)[:-9], "ended before the end-of-stream"),
    ],
)
def test_fashion_damaged(tmp_path, content, problem):
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(
        DataError, match=rf"t10k-images-idx3-ubyte\.gz: .*{problem}.*Wanted: .*fetch\.py fashion"
    ):
        data.load(FASHION, str(tmp_path), "test")


# CIFAR-10

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60_000, 3072), dtype=np.uint8)


def cifar_batches(binary):
    for i, part in enumerate(np.split(IMAGES, 6)):
        name = "test_batch" if i == 5 else f"data_batch_{i + 1}"
        if binary:
            yield f"{name}.bin", np.concatenate([np.zeros((10_000, 1), np.uint8), part], axis=1).tobytes()
        else:
            record = {b"batch_label": name.encode(), b"labels": [0] * 10_000, b"data": part, b"filenames": []}
            yield name, pickle.dumps(record, protocol=2)


@pytest.fixture(scope="module", params=["python", "binary", "folder"])
def cifar(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("cifar")
    if request.param == "folder":
        for name, raw in cifar_batches(binary=False):
            (root / name).write_bytes(raw)
        return root
    path = root / f"cifar-10-{request.param}.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=0) as archive:
        for name, raw in cifar_batches(binary=request.param == "binary"):
            member = tarfile.TarInfo(f"cifar-10-batches/{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return path


def test_cifar10(cifar):
    test = data.load(CIFAR, str(cifar), "test")
    assert test.size == 10_000
    want = IMAGES[50_003].reshape(3, 32, 32).transpose(1, 2, 0).reshape(-1)  # row, column, channel
    np.testing.assert_array_equal(test.examples(np.array([3]), 0)[0], want)


def test_cifar10_split_is_scikit_learns(tmp_path_factory):
    from sklearn.model_selection import train_test_split

    root = tmp_path_factory.mktemp("cifar")
    for name, raw in cifar_batches(binary=True):
        (root / name).write_bytes(raw)
    train, valid = train_test_split(np.arange(50_000), test_size=2_000, random_state=11172018)
    np.testing.assert_array_equal(data.load(CIFAR, str(root)).chosen, train)
    np.testing.assert_array_equal(data.load(CIFAR, str(root), "valid").chosen, valid)


def test_cifar10_damaged(tmp_path):
    with pytest.raises(DataError, match=r"no such file or folder\. Wanted: CIFAR-10's .*cs\.toronto\.edu"):
        data.load(CIFAR, str(tmp_path / "none"))
    for name, raw in cifar_batches(binary=True):
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "data_batch_3.bin").write_bytes(b"short")
    with pytest.raises(DataError, match=r"data_batch_3\.bin is damaged"):
        data.load(CIFAR, str(tmp_path))
    (tmp_path / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_2\.bin is missing"):
        data.load(CIFAR, str(tmp_path))
    truncated = tmp_path / "cifar.tar.gz"
    truncated.write_bytes(b"\x1f\x8b\x08\x00nothing")
    with pytest.raises(DataError, match=r"cifar\.tar\.gz: cannot be read"):
        data.load(CIFAR, str(truncated))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    for name, raw in cifar_batches(binary=False):
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "data_batch_1").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(DataError, match=r"os\.system has no place in CIFAR-10"):
        data.load(CIFAR, str(tmp_path))


# ImageNet


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    for i in range(1, 11):
        images = np.full((10, 12288), i, np.uint8)
        np.savez(root / f"train_data_batch_{i}.npz", data=images, labels=np.ones(10), mean=np.zeros(12288))
    planes = np.repeat(np.arange(3, dtype=np.uint8), 64 * 64)[None]
    np.savez(root / "val_data.npz", data=planes, labels=np.ones(1))
    return root


def test_imagenet64(imagenet):
    sizes = {split: data.load(IMAGENET, str(imagenet), split).size for split in data.SPLITS}
    assert sizes == {"train": 97, "valid": 3, "test": 1}  # 50,018 of 1,281,167 validate
    train = data.load(IMAGENET, str(imagenet))
    assert train.examples(np.array([0, 9, 10, 96]), 0)[:, 0].tolist() == [1, 1, 2, 10]
    image = data.load(IMAGENET, str(imagenet), "test").examples(np.array([0]), 0)[0]
    assert image[:6].tolist() == [0, 1, 2, 0, 1, 2]  # channels vary fastest


def test_imagenet64_damaged(imagenet, tmp_path):
    with pytest.raises(
        DataError, match=r"no such folder\. Wanted: the folder with train_data_batch_1\.npz .*image-net"
    ):
        data.load(IMAGENET, str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"train_data_batch_1\.npz: no such file"):
        data.load(IMAGENET, str(tmp_path))
    raw = (imagenet / "val_data.npz").read_bytes()
    (tmp_path / "val_data.npz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match=r"val_data\.npz: cannot be read"):
        data.load(IMAGENET, str(tmp_path), "test")
    np.savez(tmp_path / "val_data.npz", data=np.zeros((2, 3072), np.uint8))  # the 32x32 set
    with pytest.raises(DataError, match=r"`data` is uint8 \[2, 3072\] instead of uint8 \[images, 12288\]"):
        data.load(IMAGENET, str(tmp_path), "test")


# Audio


def write_wav(path, x, width=2, channels=1, rate=12_000):
    scaled = np.round(x * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    if width == 1:
        scaled += 128
    raw = np.repeat(scaled, channels).astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width]
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(raw.tobytes())


def test_mu_law_round_trip():
    tokens = np.arange(256)
    np.testing.assert_array_equal(audio.encode_mu_law(audio.decode_mu_law(tokens)), tokens)
    assert audio.encode_mu_law(np.array([-1.0, 1.0])).tolist() == [0, 255]


@pytest.mark.parametrize(
    "width, channels, rate", [(1, 1, 12_000), (2, 2, 12_000), (3, 1, 44_100), (4, 2, 24_000)]
)
def test_wav_files(tmp_path, width, channels, rate):
    time = np.arange(rate) / rate
    write_wav(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * time), width, channels, rate)
    heard = audio.decode_mu_law(audio.read_recording(tmp_path / "a.wav"))
    assert len(heard) == 12_000
    inner = slice(1000, -1000)  # resampling rings at the ends
    want = 0.5 * np.sin(2 * np.pi * 440 * np.arange(12_000) / 12_000)
    np.testing.assert_allclose(heard[inner], want[inner], atol=0.02)


def test_a_folder_of_wav_files(tmp_path):
    for i in range(2):
        write_wav(tmp_path / f"{i}.wav", np.full(10_000, i / 2))
    tokens = np.concatenate([data.load(AUDIO, str(tmp_path), split).tokens for split in data.SPLITS])
    assert len(tokens) == 20_000 and tokens[0] != tokens[-1]


def test_audio_damaged(tmp_path):
    with pytest.raises(
        DataError, match=r"no folder with \.wav or \.flac files\. Wanted: a \.wav or \.flac file, or a folder"
    ):
        data.load(AUDIO, str(tmp_path))
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFFnonsense")
    with pytest.raises(DataError, match=r"a\.wav: not a WAV or FLAC file"):
        data.load(AUDIO, str(tmp_path))
    write_wav(path, np.zeros(10_000))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"a\.wav: cut short: 4,956 of 20,000 bytes"):
        data.load(AUDIO, str(tmp_path))


@pytest.mark.parametrize(
    "name, subtype, precise",
    [
        ("a.WAV", "FLOAT", 1e-9),
        ("a.wav", "PCM_24", 1e-6),
        ("a.flac", "PCM_24", 1e-6),
        ("a.FLAC", "PCM_16", 1e-4),
    ],
)
def test_one_recording_of_any_common_kind(tmp_path, name, subtype, precise):
    x = 0.5 * np.sin(np.arange(20_000) / 40)
    kind = name.rpartition(".")[2].upper()
    soundfile.write(tmp_path / name, x, 12_000, subtype, format=kind)
    heard = audio.read_recording(tmp_path / name)
    assert np.abs(heard.astype(int) - audio.encode_mu_law(x)).max() <= (precise > 1e-5)
    for path in (tmp_path / name, tmp_path):
        tokens = np.concatenate([data.load(AUDIO, str(path), split).tokens for split in data.SPLITS])
        np.testing.assert_array_equal(tokens, heard)


def test_a_wav_file_of_unknown_length_is_read(tmp_path):
    """As programs write that stream: the length in the header says nothing."""
    write_wav(tmp_path / "a.wav", np.full(10_000, 0.5))
    raw = bytearray((tmp_path / "a.wav").read_bytes())
    raw[4:8] = raw[40:44] = b"\xff" * 4
    (tmp_path / "a.wav").write_bytes(raw)
    assert len(audio.read_recording(tmp_path / "a.wav")) == 10_000


@pytest.mark.parametrize(
    "place, value, problem",
    [
        (24, 0, "cannot be read|can be read"),  # Hz
        (24, 2**31 - 1, "its header says 2,147,483,647 Hz"),
        (22, 0, "can be read"),  # channels, and the alignment beside them
    ],
)
def test_headers_that_ask_for_everything_or_nothing(tmp_path, place, value, problem):
    write_wav(tmp_path / "a.wav", np.full(10_000, 0.5))
    raw = bytearray((tmp_path / "a.wav").read_bytes())
    size = 2 if place == 22 else 4
    raw[place : place + size] = value.to_bytes(size, "little")
    (tmp_path / "a.wav").write_bytes(raw)
    with pytest.raises(DataError, match=rf"a\.wav: .*{problem}.*\. Wanted: a \.wav or \.flac file"):
        audio.read_recording(tmp_path / "a.wav")


# One's own


def test_a_folder_of_pictures(tmp_path):
    for i in range(40):
        image = np.full((30 + i, 50, 3), 6 * i, np.uint8)
        Image.fromarray(image).save(tmp_path / f"{i:02}.{('png', 'JPG', 'jpeg')[i % 3]}")
    sizes = {split: data.load(CIFAR, str(tmp_path), split).size for split in data.SPLITS}
    assert sizes == {"train": 36, "valid": 2, "test": 2}
    sources = data.load_splits(replace(CIFAR, grid=(16, 16, 3)), str(tmp_path))
    means = np.concatenate([s.examples(np.arange(s.size), 0).mean(axis=1) for s in sources.values()])
    np.testing.assert_allclose(np.sort(means), 6 * np.arange(40), atol=2)
    assert sources["train"].examples(np.array([0]), 0).shape == (1, 768)


def test_one_batch_of_imagenet64(imagenet, tmp_path):
    images = np.repeat(np.arange(100, dtype=np.uint8)[:, None], 12288, axis=1)
    np.savez(tmp_path / "train_data_batch_1.npz", data=images)
    sources = data.load_splits(IMAGENET, str(tmp_path / "train_data_batch_1.npz"))
    assert {split: source.size for split, source in sources.items()} == {"train": 90, "valid": 5, "test": 5}
    seen = np.concatenate([source.examples(np.arange(source.size), 0)[:, 0] for source in sources.values()])
    assert sorted(seen) == list(range(100))


def test_text_from_a_folder(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_bytes(b"first " * 500)
    (tmp_path / "b" / "c.md").write_bytes(b"second" * 500)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".hidden").write_bytes(b"hidden")
    tokens = np.concatenate([data.load(TEXT, str(tmp_path), split).tokens for split in data.SPLITS])
    assert tokens.tobytes() == b"first " * 500 + b"\n" + b"second" * 500


@pytest.mark.parametrize(
    "settings, name, content, advice",
    [
        (TEXT, "text.gz", b"\x1f\x8b\x08", "unpack it with gunzip"),
        (TEXT, "text.pdf", b"%PDF-1.7", "convert it with pdftotext"),
        (AUDIO, "song.mp3", b"ID3", r"convert it: ffmpeg -i song\.mp3 song\.wav"),
        (AUDIO, "folder/song.ogg", b"OggS", r"convert it: ffmpeg -i song\.ogg song\.wav"),
        (CIFAR, "folder/a.webp", b"RIFF", r"convert them: magick mogrify -format png \*\.webp"),
        (IMAGENET, "folder/a.gif", b"GIF8", r"convert them: magick mogrify -format png \*\.gif"),
    ],
)
def test_a_wrong_kind_says_how_to_convert(settings, name, content, advice, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    given = path if path.parent == tmp_path else path.parent
    with pytest.raises(DataError, match=advice):
        data.load(settings, str(given))


# Files that others made


def test_a_pickle_holds_its_own_arrays_alone(tmp_path):
    """An object array over bytes of the file's choosing would be pointers of its choosing."""
    images = np.zeros((10_000, 3072), np.uint8)
    for problem, content in {
        "something else than u1 or i8": {b"data": images, b"labels": np.zeros(3, "O")},
        "has no place": {b"data": images, b"labels": Path("x")},
        "no array of 10,000 images": {b"data": images[:100]},
        "'list' object has no attribute": {b"data": [1]},
    }.items():
        with pytest.raises(ValueError, match=problem):
            load_batch(pickle.dumps(content, protocol=2))
    np.testing.assert_array_equal(load_batch(pickle.dumps({b"data": images}, protocol=2)), images)
    with pytest.raises(ValueError, match="memo is larger than the file"):
        load_batch(b"\x80\x02}r\xff\xff\xff\x7f.")


def test_a_batch_that_unpacks_to_gigabytes_is_refused(tmp_path):
    path = tmp_path / "train_data_batch_1.npz"
    np.savez_compressed(path, data=np.zeros((9_000, 12288), np.uint8))
    with pytest.raises(DataError, match="unpacks to more than 100 times its size"):
        data.load(IMAGENET, str(path))


# What every machine has, and the order


@pytest.mark.parametrize("settings", [TEXT, CIFAR, IMAGENET, AUDIO], ids=lambda settings: settings.name)
def test_built_in_data(settings):
    for split in data.SPLITS:
        source = data.load(settings, None, split)
        batch = batch_at(source, 0, 2, seed=0)
        assert batch.shape == (2, settings.n_ctx) and batch.dtype == np.int32
        assert 0 <= batch.min() < batch.max() < 256


def test_an_epoch_shows_every_example_once():
    images = data.Images([np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)], np.arange(10))
    epochs = [
        np.concatenate([batch_at(images, step, 5, seed=3) for step in pair]) for pair in ((0, 1), (2, 3))
    ]
    for epoch in epochs:
        assert sorted(epoch[:, 0]) == list(range(10))
    assert (epochs[0] != epochs[1]).any()


def test_a_stream_covers_its_windows_at_shifting_places():
    stream = data.Stream(np.arange(1000) % 256, 10)
    batch = batch_at(stream, 0, stream.size, seed=0)
    assert (np.diff(batch, axis=1) % 256 == 1).all()
    assert len(np.unique(batch[:, 0] % 10)) > 1 or stream.size < 26  # 256 is no multiple of 10


@pytest.mark.parametrize("pipelines, replicas", [(1, 1), (1, 2), (2, 2), (2, 4)])
def test_replicas_share_the_batch_that_one_device_has(pipelines, replicas):
    settings = replace(TEXT, batch=4)
    source = data.load(settings)
    steps = []
    for index in range(pipelines):
        context = tf.distribute.InputContext(pipelines, index, replicas)
        elements = pipeline(source, settings, 5, context).take(2 * replicas // pipelines).as_numpy_iterator()
        steps.append(np.concatenate(list(elements)).reshape(2, -1, settings.n_ctx))
    whole = np.stack([batch_at(source, step, 4, settings.seed) for step in (5, 6)])
    np.testing.assert_array_equal(np.concatenate(steps, axis=1), whole)
