"""Files of weights that know what is in them: what the digest stands for, and what it does not depend on."""

import json
import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from mcvd_diffusers.weights import (
    DIGEST,
    WeightsError,
    check_weights,
    save_weights,
    seal_weights,
    tensor_shapes,
    tensor_types,
    weights_digest,
)


TYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.uint8,
    torch.bool,
]


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(3, 4, generator=generator),
        "a.weight": torch.randn(2, 3, 1, generator=generator).to(torch.bfloat16),
        "a.scale": torch.tensor(1.5),
        "empty": torch.zeros(0, 5),
    }


def header(path):
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def equal(a, b):
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


# --------------------------------------------------------------------------------------------------------------------
# The digest


def test_a_digest_does_not_depend_on_order_or_memory():
    first, digest = tensors(), weights_digest(tensors())
    assert len(digest) == 64 and digest == weights_digest(dict(reversed(first.items())))
    assert digest == weights_digest({name: x.mT.contiguous().mT if x.dim() > 1 else x for name, x in first.items()})
    assert digest == weights_digest({name: torch.stack([x, x])[1] for name, x in first.items()})
    assert digest == weights_digest({name: torch.nn.Parameter(x) for name, x in first.items()})


@pytest.mark.parametrize("type_", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,), (5, 3)], ids=str)
def test_every_type_and_shape_has_a_digest_and_comes_back(type_, shape, tmp_path):
    x = torch.arange(15.0)[: torch.Size(shape).numel()].reshape(shape).to(type_)
    save_weights({"x": x}, tmp_path / "file")
    assert check_weights(tmp_path / "file") == weights_digest({"x": x})
    loaded = load_file(tmp_path / "file")["x"]
    assert loaded.dtype == type_ and loaded.shape == shape
    assert torch.equal(loaded.reshape(-1).view(torch.uint8), x.reshape(-1).view(torch.uint8))
    assert tensor_shapes(tmp_path / "file") == {"x": shape}


@pytest.mark.parametrize(
    "change",
    [
        {"b.weight": torch.zeros(3, 4)},
        {"b.weight": tensors()["b.weight"].reshape(4, 3)},
        {"a.scale": torch.tensor([1.5])},
        {"a.scale": torch.tensor(1.5, dtype=torch.float64)},
        {"a.weight": tensors()["a.weight"].view(torch.float16)},
        {"empty": torch.zeros(5, 0)},
        {"c": torch.zeros(0)},
    ],
    ids=["value", "shape", "0-d or not", "type", "type of the same bytes", "shape of nothing", "one more"],
)
def test_whatever_differs_is_another_digest(change):
    assert weights_digest(tensors() | change) != weights_digest(tensors())


def test_names_are_part_of_a_digest():
    x, y = torch.zeros(2), torch.ones(2)
    assert weights_digest({"x": x, "y": y}) != weights_digest({"x": y, "y": x})
    assert weights_digest({"x": x}) != weights_digest({"y": x})


def test_values_are_compared_as_bits():
    """Zero has two signs, and NaN is not itself."""
    assert weights_digest({"x": torch.tensor(0.0)}) != weights_digest({"x": torch.tensor(-0.0)})
    assert weights_digest({"x": torch.tensor(float("nan"))}) == weights_digest({"x": torch.tensor(float("nan"))})


# --------------------------------------------------------------------------------------------------------------------
# Writing


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    """Safetensors alone writes metadata in an order that differs from time to time."""
    metadata = {f"key{i}": str(i) for i in range(20)}
    written = set()
    for i in range(10):
        order = list(tensors().items())
        save_weights(dict(order[i % 4 :] + order[: i % 4]), tmp_path / "file", dict(reversed(metadata.items())))
        written.add((tmp_path / "file").read_bytes())
    assert len(written) == 1 and equal(load_file(tmp_path / "file"), tensors())
    assert header(tmp_path / "file")["__metadata__"] == metadata | {
        "format": "pt",
        DIGEST: weights_digest(tensors()),
    }


def test_names_with_any_characters_are_written(tmp_path):
    names = {'quote " and \\': torch.zeros(1), "ümläut 漢字": torch.ones(2), "\t\n": torch.ones(3)}
    save_weights(names, tmp_path / "file", {"note": 'ü " \\ \n'})
    assert equal(load_file(tmp_path / "file"), names) and check_weights(tmp_path / "file") == weights_digest(names)
    assert header(tmp_path / "file")["__metadata__"]["note"] == 'ü " \\ \n'


def test_a_file_that_cannot_be_written_is_an_operating_systems_error(tmp_path):
    with pytest.raises(OSError, match="[Nn]o such file"):
        save_weights(tensors(), tmp_path / "missing" / "file")


def test_nothing_at_all_is_a_file_too(tmp_path):
    save_weights({}, tmp_path / "file")
    assert check_weights(tmp_path / "file") == weights_digest({}) and tensor_shapes(tmp_path / "file") == {}


# --------------------------------------------------------------------------------------------------------------------
# Sealing what others wrote


def test_sealing_adds_the_digest_and_leaves_the_rest(tmp_path):
    path = tmp_path / "file"
    save_file(tensors(), path, metadata={"author": "somebody", "format": "pt"})
    path.chmod(0o640)
    assert check_weights(path) is None
    seal_weights(path)
    digest = weights_digest(tensors())
    assert check_weights(path) == digest and equal(load_file(path), tensors())
    assert header(path)["__metadata__"] == {"author": "somebody", "format": "pt", DIGEST: digest}
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["file"]


def test_sealing_twice_changes_nothing(tmp_path):
    path = tmp_path / "file"
    save_weights(tensors(), path)
    before = path.stat()
    seal_weights(path)
    assert path.stat() == before


def test_a_sealed_file_is_the_one_that_is_written_at_once(tmp_path):
    save_file(tensors(), tmp_path / "sealed", metadata={"format": "pt"})
    seal_weights(tmp_path / "sealed")
    save_weights(tensors(), tmp_path / "written")
    assert (tmp_path / "sealed").read_bytes() == (tmp_path / "written").read_bytes()


def test_sealing_a_damaged_file_fails_and_leaves_it(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"evil")
    with pytest.raises(WeightsError, match="file is damaged"):
        seal_weights(path)
    assert path.read_bytes() == b"evil" and os.listdir(tmp_path) == ["file"]


# --------------------------------------------------------------------------------------------------------------------
# Checking


def test_files_of_others_have_no_digest_and_are_read(tmp_path):
    for metadata in (None, {"format": "pt"}, {"other": "x"}):
        save_file(tensors(), tmp_path / "file", metadata=metadata)
        assert check_weights(tmp_path / "file") is None
        assert tensor_shapes(tmp_path / "file") == {name: tuple(x.shape) for name, x in tensors().items()}


def test_the_header_says_types(tmp_path):
    save_weights(tensors() | {"n": torch.tensor(1)}, tmp_path / "file")
    expected = {"b.weight": "F32", "a.weight": "BF16", "a.scale": "F32", "empty": "F32", "n": "I64"}
    assert tensor_types(tmp_path / "file") == expected


@pytest.mark.parametrize("read", [check_weights, tensor_shapes, tensor_types, seal_weights])
@pytest.mark.parametrize("content", [b"", b"evil", b"\xff" * 100, b"\x02" + bytes(7) + b"{}x", None], ids=str)
def test_what_is_no_safetensors_file_is_named(read, content, tmp_path):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(WeightsError, match=str(tmp_path / "file")):
        read(tmp_path / "file")


def test_no_bit_of_a_file_can_be_changed_unnoticed(tmp_path):
    """Refused, or the same tensors: bits of the digest's own name may change, which makes it a file of others."""
    path = tmp_path / "file"
    save_weights({"x": torch.tensor([1.0, 2.0]), "yy": torch.tensor(3, dtype=torch.uint8)}, path)
    expected, data = load_file(path), path.read_bytes()
    # What says nothing about the tensors: the digest's own name, whose loss makes a file of others, the format, the padding.
    free = {data.index(word) + i for word in (DIGEST.encode(), b"format", b"pt") for i in range(len(word))}
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            try:
                check_weights(path)
            except WeightsError as error:
                assert str(path) in str(error)
            else:
                assert position in free or data[position] == ord(" "), (position, bit)
                assert equal(load_file(path), expected), (position, bit)
