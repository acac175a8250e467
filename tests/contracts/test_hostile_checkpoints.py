"""Checkpoints that are damaged, or made to do harm: each is refused by a message that names the file, and nothing is run.

`checkpoints` are saved once for each kind; a test changes a copy. Whatever hides in a copy would, if it were run, write the
marker of `would_write`: after every test it must not be there, and the folder must be as the test left it.
"""

import json
import pickle
import shutil
import sys
import types

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from diffusers.guiders import ClassifierFreeGuidance
from safetensors.torch import load_file, save_file

from context_pipelines import context_pipeline
from contract_rows import NETWORKS, PIPELINES
from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel


ROW = PIPELINES[0]
INDEX = "model_index.json"
CONFIG = "unet/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SHARDS = f"{WEIGHTS}.index.json"
VARIANT = "unet/diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    pipe = ROW.make()
    pipe.save_pretrained(folder / "whole")
    pipe.save_pretrained(folder / "sharded", max_shard_size="10KB")
    pipe.save_pretrained(folder / "variant", variant="fp16")
    return folder


@pytest.fixture
def copy(checkpoints, tmp_path, monkeypatch):
    """A copy of a kind of checkpoint; at the end nothing was written by anybody but the test."""
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    copies = {}

    def make(kind="whole"):
        folder = tmp_path / kind
        shutil.copytree(checkpoints / kind, folder)
        copies[kind] = folder
        return folder

    yield make
    assert not (tmp_path / "marker").exists(), "code of a checkpoint was run"
    assert {path.name for path in tmp_path.iterdir()} == set(copies), "something was written beside the checkpoint"


WRITES_MARKER = "import os; open(os.environ['MARKER'], 'w').close()\n"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder, file, says="", load=MCVDPipeline.from_pretrained, **arguments):
    """Loading fails, names the file, and changes nothing in the folder."""
    before, modules = contents(folder), set(sys.modules)
    with pytest.raises((ValueError, OSError)) as error:
        load(str(folder), **arguments)
    text = str(error.value)
    assert str(folder / file) in text, text
    assert says in text, text
    assert contents(folder) == before
    # Diffusers imports its own classes when they are asked for; nothing of a checkpoint is imported.
    new = {name.split(".")[0] for name in set(sys.modules) - modules}
    assert not new & {"antigravity", "evil", "unet_mcvd", "pipeline_evil", "diffusers_modules"}, new
    return text


def edit(folder, file, **values):
    """Set entries of a JSON file; `...` takes one away."""
    content = json.loads((folder / file).read_text())
    content |= values
    (folder / file).write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


def save_with(folder, **entries):
    """Save the network anew, with more in its config."""
    network = MCVDUNet2DModel.from_pretrained(folder / "unet")
    network.register_to_config(**entries)
    network.save_pretrained(folder / "unet")
    assert json.loads((folder / CONFIG).read_text()).items() >= entries.items()


def same_weights(folder, **arguments):
    loaded = MCVDUNet2DModel.from_pretrained(folder / "unet", **arguments).state_dict()
    expected = ROW.network.make().state_dict()
    return loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["whole", "sharded", "variant"])
def test_checkpoints_that_nobody_has_changed_load(copy, kind):
    arguments = {"variant": "fp16"} if kind == "variant" else {}
    folder = copy(kind)
    MCVDPipeline.from_pretrained(folder, **arguments)
    assert same_weights(folder, **arguments)


# --------------------------------------------------------------------------------------------------------------------
# Files of weights


def weight_file(folder, kind):
    if kind == "sharded":
        return sorted((folder / "unet").glob("*-of-*.safetensors"))[2]
    return folder / (VARIANT if kind == "variant" else WEIGHTS)


def header_size(path):
    return int.from_bytes(path.read_bytes()[:8], "little")


DAMAGES = {
    "a byte of the header's length": lambda data, header: flipped(data, 1),
    "a byte of a name": lambda data, header: flipped(data, data.index(b"weight")),
    "a byte of a number": lambda data, header: flipped(data, data.index(b"data_offsets") + 16),
    "a byte of the digest": lambda data, header: flipped(data, data.index(b"tensors_sha256") + 20),
    "the first byte of the data": lambda data, header: flipped(data, 8 + header),
    "a byte in the middle": lambda data, header: flipped(data, (8 + header + len(data)) // 2),
    "the last byte": lambda data, header: flipped(data, len(data) - 1),
    "truncated data": lambda data, header: data[:-10],
    "truncated header": lambda data, header: data[: 8 + header // 2],
    "seven bytes": lambda data, header: data[:7],
    "empty": lambda data, header: b"",
    "something added": lambda data, header: data + b"\0",
    "a page": lambda data, header: b"<!DOCTYPE html><title>404</title>",
    "a pointer to a large file": lambda data, header: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "a header of 2**63 bytes": lambda data, header: (2**63).to_bytes(8, "little") + data[8:],
    "a header of nested lists": lambda data, header: (200_000).to_bytes(8, "little") + b"[" * 200_000,
}


def flipped(data, position, bit=1):
    data = bytearray(data)
    data[position] ^= bit
    return bytes(data)


@pytest.mark.parametrize("kind", ["whole", "sharded", "variant"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_refused(copy, kind, damage):
    folder = copy(kind)
    path = weight_file(folder, kind)
    path.write_bytes(DAMAGES[damage](path.read_bytes(), header_size(path)))
    arguments = {"variant": "fp16"} if kind == "variant" else {}
    if damage == "a byte of a name" and kind == "sharded":  # then index and file do not agree: both are named
        assert path.name in refused(folder, SHARDS)
    else:
        refused(folder, path.relative_to(folder), **arguments)


@pytest.fixture(params=[row for row in NETWORKS if row is not ROW.network], ids=lambda row: row.name)
def other_network(request, tmp_path):
    """Each network that is not the one of `ROW`, saved: `(row, folder)`."""
    folder = tmp_path / "network"
    request.param.make().save_pretrained(folder)
    return request.param, folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_of_every_network_are_refused(other_network, damage):
    row, folder = other_network
    path = folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(DAMAGES[damage](path.read_bytes(), header_size(path)))
    refused(folder, path.name, load=row.network_class.from_pretrained)


def other_values(value):
    """Values that no argument of a network with this default takes, and for a number one far too large."""
    others = [{"evil": 1}, [["evil"]], "evil"]
    if value is None or isinstance(value, (int, float)):
        others += [float("nan"), -1, 10**400, [10**9]]
    if isinstance(value, (list, tuple)):
        others += [5, [10**9], [-1], [8] * 10**5]
    return others


def test_configs_of_every_network_with_other_values_are_refused(other_network):
    row, folder = other_network
    for name, value in row.make().config.items():
        if not name.startswith("_"):
            for other in other_values(value):
                before = (folder / "config.json").read_bytes()
                edit(folder, "config.json", **{name: other})
                refused(folder, "config.json", load=row.network_class.from_pretrained)
                (folder / "config.json").write_bytes(before)
    row.network_class.from_pretrained(folder)


@pytest.mark.slow
def test_no_byte_of_a_networks_file_can_be_changed_unnoticed(tmp_path):
    """Each byte of the header, and of the data where a tensor begins or ends."""
    config = ROW.network.config | {"block_out_channels": (4,), "down_block_types": ("DownBlock2D",)}
    MCVDUNet2DModel(**config).save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    expected, data = load_file(path), path.read_bytes()
    size = header_size(path)
    header = json.loads(data[8 : 8 + size])
    ends = {end for name in expected for end in header[name]["data_offsets"]}
    in_data = {8 + size + position for end in ends for position in (end - 1, end)} - {7 + size, len(data)}
    for position in [*range(8 + size), *sorted(in_data)]:
        path.write_bytes(flipped(data, position))
        try:
            loaded = MCVDUNet2DModel.from_pretrained(tmp_path).state_dict()
        except (ValueError, OSError) as error:
            assert str(path) in str(error), position
        else:  # the name of the digest, or of the format: a file that others wrote has none
            assert loaded.keys() == expected.keys(), position
            assert all(torch.equal(loaded[name], expected[name]) for name in expected), position


@pytest.mark.slow
def test_no_byte_of_a_networks_config_can_be_changed_unnoticed(tmp_path):
    config = ROW.network.config | {"block_out_channels": (4,), "down_block_types": ("DownBlock2D",)}
    MCVDUNet2DModel(**config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    data, unnoticed = path.read_bytes(), set()
    for position in range(len(data)):
        path.write_bytes(flipped(data, position))
        try:
            MCVDUNet2DModel.from_pretrained(tmp_path)
        except (ValueError, OSError) as error:
            assert "config.json" in str(error) or "diffusion_pytorch_model.safetensors" in str(error), error
        else:
            before, now = json.loads(data), json.loads(path.read_bytes())
            unnoticed |= {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    # What a file says of its maker changes nothing.
    assert unnoticed and all(name.startswith("_") for name in unnoticed), unnoticed


@pytest.mark.parametrize("type_", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_weights_that_are_no_floating_point_numbers_are_refused(copy, type_):
    folder = copy()
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "conv_in.weight": tensors["conv_in.weight"].to(type_)}, folder / WEIGHTS)
    refused(folder, WEIGHTS, "'conv_in.weight'")


@pytest.mark.parametrize("change", ["missing", "left over", "another shape"])
def test_weights_of_another_network_are_refused(copy, change):
    folder = copy()
    tensors = load_file(folder / WEIGHTS)
    if change == "missing":
        del tensors["conv_in.weight"]
    elif change == "left over":
        tensors["conv_in.evil"] = torch.zeros(1)
    else:
        tensors["conv_in.weight"] = tensors["conv_in.weight"].reshape(-1)
    save_file(tensors, folder / WEIGHTS)
    refused(folder, WEIGHTS, "conv_in.")


@pytest.mark.parametrize("kind, file", [("whole", WEIGHTS), ("variant", WEIGHTS), ("sharded", None)])
def test_missing_weights_are_refused(copy, kind, file):
    """In a folder of a variant those without one are missing."""
    folder = copy(kind)
    path = folder / file if file else weight_file(folder, kind)
    path.unlink(missing_ok=True)
    refused(folder, path.relative_to(folder), "is missing")


def test_what_is_no_regular_file_is_missing(copy):
    folder = copy()
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/dev/zero")
    with pytest.raises(OSError, match="is missing"):
        MCVDPipeline.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/etc/passwd")  # caches link to files; what is not safetensors is refused
    with pytest.raises(OSError, match="is no safetensors file"):
        MCVDPipeline.from_pretrained(folder)


def test_swapped_files_of_a_network_are_refused(copy):
    folder = copy("sharded")
    first, second = sorted((folder / "unet").glob("*-of-*.safetensors"))[:2]
    data = first.read_bytes(), second.read_bytes()
    first.write_bytes(data[1]), second.write_bytes(data[0])
    assert first.name in refused(folder, SHARDS, "do not agree")


def edit_map(folder, change):
    index = json.loads((folder / SHARDS).read_text())
    change(index["weight_map"])
    (folder / SHARDS).write_text(json.dumps(index))


NAMES = {
    "a path upwards": "../../evil.safetensors",
    "a path downwards": "evil/evil.safetensors",
    "an absolute path": "/etc/evil.safetensors",
    "a path of Windows": "..\\evil.safetensors",
    "another format": "diffusion_pytorch_model.bin",
    "a number": 5,
    "nothing": None,
    "a list": ["a.safetensors"],
    "a dictionary": {},
    "a file that is not there": "evil.safetensors",
}


@pytest.mark.parametrize("name", NAMES)
def test_an_index_that_names_other_files_is_refused(copy, name):
    folder = copy("sharded")
    edit_map(folder, lambda weight_map: weight_map.update({next(iter(weight_map)): NAMES[name]}))
    refused(folder, SHARDS)


INDEXES = {
    "no JSON": "{",
    "no dictionary": "[]",
    "no map": '{"metadata": {}}',
    "an empty map": '{"metadata": {}, "weight_map": {}}',
    "a map that is a list": '{"metadata": {}, "weight_map": ["a"]}',
    "nested too deeply": "[" * 100_000,
    "not UTF-8": b"\xff\xfe{}",
}


@pytest.mark.parametrize("text", INDEXES)
def test_an_index_that_is_none_is_refused(copy, text):
    folder = copy("sharded")
    content = INDEXES[text]
    (folder / SHARDS).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(folder, SHARDS)


def test_an_index_that_lacks_keys_is_refused(copy):
    folder = copy("sharded")
    edit_map(folder, lambda weight_map: weight_map.pop(next(iter(weight_map))))
    refused(folder, SHARDS, "do not agree")


def test_an_index_without_metadata_is_refused(copy):
    folder = copy("sharded")
    edit(folder, SHARDS, metadata=...)
    refused(folder, SHARDS)


class Evil:
    def __reduce__(self):
        return exec, (WRITES_MARKER,)


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_what_a_pickle_asks_for_is_not_done(copy, kind):
    """Where there are no other weights torch reads them, with `weights_only`; where an index names others, nobody does."""
    folder = copy(kind)
    for path in (folder / "unet").glob("*.safetensors"):
        path.unlink()
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
        (folder / "unet" / name).write_bytes(pickle.dumps(Evil()))
    shards = json.loads((folder / SHARDS).read_text())["weight_map"].values() if kind == "sharded" else ()
    refused(folder, f"unet/{min(shards, default='diffusion_pytorch_model.bin')}")
    refused(folder, WEIGHTS if kind == "whole" else f"unet/{min(shards)}", use_safetensors=True)


def test_pickled_weights_of_another_network_are_refused(copy):
    folder = copy()
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    path = folder / "unet/diffusion_pytorch_model.bin"
    torch.save(tensors, path)
    assert same_weights(folder)
    content = path.read_bytes()
    middle = content.index(tensors["conv_in.weight"].numpy().tobytes()) + 50
    path.write_bytes(flipped(content, middle))
    refused(folder, "unet/diffusion_pytorch_model.bin", "does not have its checksum")
    torch.save({name: x for name, x in tensors.items() if name != "conv_in.weight"}, path)
    refused(folder, "unet/diffusion_pytorch_model.bin", "'conv_in.weight'")
    torch.save(tensors | {"conv_in.evil": torch.zeros(1)}, path)
    refused(folder, "unet/diffusion_pytorch_model.bin", "'conv_in.evil'")


# --------------------------------------------------------------------------------------------------------------------
# The network's config


@pytest.mark.parametrize(
    "change",
    [
        {"in_channels": 10**6},
        {"block_out_channels": [10**6, 10**6]},
        {"block_out_channels": [8] * 10**5},
        {"block_out_channels": [60_000, 60_000]},
        {"layers_per_block": 10**6},
        {"num_frames": 10**400},
        {"num_past_frames": -1},
        {"in_channels": "1"},
        {"in_channels": 1.0},
        {"in_channels": True},
        {"in_channels": None},
        {"in_channels": {}},
        {"sample_size": float("nan")},
        {"block_out_channels": {}},
        {"down_block_types": ["DownBlock2D", "evil"]},
        {"down_block_types": ["DownBlock2D", {}]},
        {"conditioning": "evil"},
        {"conditioning": ["concat"]},
        {"dropout": "evil"},
        {"embed_past_kept": "evil"},
        {"_class_name": "UNet2DModel"},
        {"_class_name": "Evil"},
        {"_class_name": ["evil", "Evil"]},
        {"_class_name": None},
        {"_use_default_values": 5},
        {"quantization_config": {"quant_method": "bitsandbytes_4bit"}},
        {"quantization_config": {"quant_method": "torchao"}},
        {"quantization_config": 5},
    ],
    ids=lambda change: str(change)[:60],
)
def test_a_config_that_is_no_networks_is_refused(copy, change):
    folder = copy()
    edit(folder, CONFIG, **change)
    refused(folder, CONFIG)
    refused(folder / "unet", "config.json", load=MCVDUNet2DModel.from_pretrained)


# Of the same shapes: what is observed where, how attention is done, which tasks it can do, what it predicts.
SAME_SHAPES = [
    {"num_past_frames": 0, "num_future_frames": 3},
    {"attention_head_dim": 1},
    {"drop_past": 0.0},
    {"prediction_type": "v_prediction"},
    {"sample_size": 32},
    {"drop_past": ..., "dsop_past": 0.5},
]


@pytest.mark.parametrize("kind", ["whole", "sharded", "variant"])
@pytest.mark.parametrize("change", SAME_SHAPES, ids=str)
def test_a_config_that_is_not_the_weights_own_is_refused(copy, change, kind):
    folder = copy(kind)
    arguments = {"variant": "fp16"} if kind == "variant" else {}
    before = json.loads((folder / CONFIG).read_text())
    assert before != before | change
    edit(folder, CONFIG, **change)
    refused(folder, CONFIG, "is not the config that", **arguments)
    # It is the file that is compared: settings that are given to the loader are the caller's.
    (folder / CONFIG).write_text(json.dumps(before))
    given = {name: value for name, value in change.items() if value is not ... and name in before}
    network = MCVDUNet2DModel.from_pretrained(folder / "unet", **arguments, **given)
    assert network.config.items() >= given.items()
    # And what was edited on purpose can be saved anew.
    edit(folder, CONFIG, **change)
    load, size = MCVDUNet2DModel.from_pretrained, "10KB" if kind == "sharded" else "10GB"
    network = load(folder / "unet", ignore_mismatched_sizes=True, **arguments)
    network.save_pretrained(folder / "unet", max_shard_size=size, **arguments)
    load(folder / "unet", **arguments)


def test_a_config_that_hides_an_entry_is_refused_by_the_weights(copy):
    folder = copy()
    edit(folder, CONFIG, _use_default_values=["in_channels"])
    refused(folder, WEIGHTS)


NO_JSON = {
    "no JSON": b"{",
    "empty": b"",
    "a list": b"[]",
    "a string": b'"evil"',
    "null": b"null",
    "nested too deeply": b"[" * 100_000,
    "not UTF-8": b"\xff\xfe{}",
    "a number of 5000 digits": b'{"in_channels": ' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("content", NO_JSON)
@pytest.mark.parametrize("file", [CONFIG, INDEX, SCHEDULER])
def test_files_that_are_no_settings_are_refused(copy, file, content):
    folder = copy()
    (folder / file).write_bytes(NO_JSON[content])
    refused(folder, file)


@pytest.mark.parametrize("file", [INDEX, SCHEDULER, CONFIG, SHARDS])
def test_files_that_say_two_things_are_refused(copy, file):
    folder = copy("sharded" if file == SHARDS else "whole")
    text = (folder / file).read_text()
    name = text.split('"')[1]
    (folder / file).write_text(text.replace("{", f'{{"{name}": "Evil",', 1))
    refused(folder, file, "twice")


@pytest.mark.parametrize("file", [INDEX, SCHEDULER])
def test_huge_files_are_refused(copy, file):
    folder = copy()
    text = (folder / file).read_text()
    (folder / file).write_text(text + " " * 2**24)
    refused(folder, file, "larger than 16,777,216 bytes")


# --------------------------------------------------------------------------------------------------------------------
# model_index.json


@pytest.mark.parametrize(
    "change",
    [
        {"unet": ["os", "system"]},
        {"unet": ["subprocess", "Popen"]},
        {"unet": ["builtins", "exec"]},
        {"unet": ["antigravity", "x"]},
        {"unet": ["transformers", "AutoModel"]},
        {"unet": ["ddpm", "DDPMPipeline"]},
        {"unet": ["diffusers", "UNet2DModel"]},
        {"unet": ["diffusers", "pipelines"]},
        {"unet": ["diffusers", "__class__"]},
        {"unet": ["diffusers", "../evil"]},
        {"unet": ["diffusers", ""]},
        {"unet": ["mcvd_diffusers", "Evil"]},
        {"unet": ["mcvd_diffusers", "FlashPackMCVDUNet2DModel"]},
        {"unet": ["mcvd_diffusers", "MCVDPipeline"]},
        {"unet": ["../evil", "Evil"]},
        {"unet": ["", ""]},
        {"unet": [None, None]},
        {"unet": ["mcvd_diffusers", None]},
        {"unet": [["mcvd_diffusers"], "MCVDUNet2DModel"]},
        {"unet": []},
        {"unet": ["a", "b", "c"]},
        {"unet": "mcvd_diffusers"},
        {"unet": {"evil": 1}},
        {"unet": 5},
        {"unet": ...},
        {"scheduler": ["mcvd_diffusers", "MCVDUNet2DModel"]},
        {"scheduler": ["diffusers", "Evil"]},
        {"scheduler": ["diffusers", "UNet2DModel"]},
        {"scheduler": ["evil", "Evil"]},
        {"scheduler": [None, None]},
        {"guider": ["diffusers", "DDIMScheduler"]},
        {"guider": ["evil", "Evil"]},
        {"guider": [None, "Evil"]},
        {"evil": ["diffusers", "UNet2DModel"]},
        {"evil": []},
        {"../evil": ["diffusers", "UNet2DModel"]},
        {"..\\evil": "x"},
        {"a/b": "x"},
        {"_ignore_files": ["unet/config.json"]},
        {"_ignore_files": 5},
        {"_use_default_values": ["unet"]},
        {"_class_name": ["pipeline_evil", "Evil"]},
        {"_class_name": ["pipeline_evil", "MCVDPipeline"]},
        {"_class_name": "DDPMPipeline"},
        {"_class_name": "DiffusionPipeline"},
        {"_class_name": "Evil"},
        {"_class_name": 5},
        {"_class_name": {}},
        {"_class_name": None},
        {"_class_name": ...},
        {"final_denoise": "evil"},
        {"final_denoise": 1},
        {"final_denoise": ["evil", "Evil"]},
        {"final_denoise": {"evil": 1}},
        {"normalization": {"evil": 1}},
        {"normalization": "evil"},
        {"normalization": ["evil", "Evil"]},
        {"normalization": {"kind": "range", "low": 5, "high": 6}},
        {"normalization": {"kind": "range", "low": [float("nan")], "high": [1.0]}},
        {"normalization": {"kind": "range", "low": [0], "high": [10**400]}},
        {"normalization": {"kind": ["range"], "low": [0], "high": [1]}},
        {"normalization": {"kind": "range", "low": [0], "high": [1], "nan_fill": {}}},
    ],
    ids=lambda change: str(change)[:70],
)
def test_a_model_index_that_asks_for_something_else_is_refused(copy, change):
    folder = copy()
    for file in ("evil.py", "pipeline_evil.py", "pipeline.py", "unet/evil.py", "scheduler/evil.py"):
        (folder / file).write_text(WRITES_MARKER)
    edit(folder, INDEX, **change)
    refused(folder, INDEX)


@pytest.mark.parametrize("file", ["unet/mcvd_diffusers.py", "scheduler/diffusers.py"])
@pytest.mark.parametrize("trusts", [False, True])
def test_code_in_the_place_of_a_library_is_refused_whoever_is_trusted(copy, file, trusts):
    """Diffusers looks for a component's library in its folder first."""
    folder = copy()
    (folder / file).write_text(WRITES_MARKER)
    refused(folder, file, "never runs code", trust_remote_code=trusts)


def test_code_that_nothing_leads_to_is_not_run(copy):
    folder = copy()
    for file in ("pipeline.py", "mcvd_diffusers.py", "unet/unet_mcvd.py", "unet/__init__.py", "conftest.py"):
        (folder / file).write_text(WRITES_MARKER)
    auto_map = {"AutoModel": "unet_mcvd.MCVDUNet2DModel", "DiffusionPipeline": "pipeline.MCVDPipeline"}
    edit(folder, INDEX, auto_map=auto_map, custom_pipeline="pipeline")
    save_with(folder, auto_map=auto_map)
    pipe = MCVDPipeline.from_pretrained(folder)
    assert type(pipe) is MCVDPipeline and type(pipe.unet) is MCVDUNet2DModel and same_weights(folder)


def test_a_generic_loader_checks_the_index_too(copy):
    folder = copy()
    assert type(DiffusionPipeline.from_pretrained(folder)) is MCVDPipeline
    edit(folder, INDEX, unet=["diffusers", "UNet2DModel"])
    with pytest.raises(ValueError, match="model_index.json: `unet` must be a MCVDUNet2DModel"):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["unet", "scheduler"])
def test_a_missing_component_is_named(copy, name):
    folder = copy()
    shutil.rmtree(folder / name)
    refused(folder, name, f"from_pretrained(..., {name}=...)")
    pipe = ROW.make()
    assert getattr(MCVDPipeline.from_pretrained(folder, **{name: pipe.components[name]}), name) is not None
    edit(folder, INDEX, **{name: ...})
    refused(folder, INDEX, f"from_pretrained(..., {name}=...)")


# --------------------------------------------------------------------------------------------------------------------
# Schedulers and guiders


@pytest.mark.parametrize(
    "change",
    [
        {"num_train_timesteps": 10**12},
        {"num_train_timesteps": 0},
        {"num_train_timesteps": -1},
        {"num_train_timesteps": 1000.0},
        {"num_train_timesteps": True},
        {"num_train_timesteps": "1000"},
        {"num_train_timesteps": None},
        {"num_train_timesteps": [1000]},
        {"trained_betas": ["evil"]},
        {"trained_betas": "evil"},
        {"trained_betas": []},
        {"trained_betas": {"evil": 1}},
        {"trained_betas": [0.1, float("nan")]},
        {"trained_betas": [0.1, float("inf")]},
        {"trained_betas": [[0.1]]},
        {"trained_betas": [True]},
        {"trained_betas": [0.1, 0.1]},
        {"beta_start": float("nan")},
        {"beta_end": 5.0},
        {"beta_start": -0.1},
        {"clip_sample_range": 0.0},
        {"clip_sample_range": -1.0},
        {"clip_sample_range": float("nan")},
        {"clip_sample_range": 1e300},
        {"thresholding": True, "sample_max_value": -1.0},
        {"thresholding": True, "dynamic_thresholding_ratio": float("inf")},
        {"beta_start": "evil"},
        {"beta_start": None},
        {"beta_schedule": "evil"},
        {"beta_schedule": 5},
        {"clip_sample": "evil"},
        {"steps_offset": 10**30},
        {"prediction_type": ["epsilon"]},
        {"_class_name": "Evil"},
        {"_class_name": "DDPMScheduler"},
        {"_class_name": ["evil", "Evil"]},
        {"_class_name": ...},
    ],
    ids=lambda change: str(change)[:60],
)
def test_settings_that_are_no_schedulers_are_refused(copy, change):
    folder = copy()
    edit(folder, SCHEDULER, **change)
    refused(folder, SCHEDULER)


def test_a_size_that_only_one_scheduler_has_is_bounded(copy):
    folder = copy()
    pipe = MCVDPipeline.from_pretrained(folder)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(folder)
    assert MCVDPipeline.from_pretrained(folder).scheduler.config.lambda_min_clipped == -float("inf")  # its default
    # A scheduler made of that one carries it along.
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(folder / "other")
    assert type(MCVDPipeline.from_pretrained(folder / "other").scheduler) is DDIMScheduler
    edit(folder, SCHEDULER, solver_order=10**12)  # it makes a list as long as that
    refused(folder, SCHEDULER, "`solver_order` must be at most 1,000,000")


def test_settings_beside_the_index_are_checked_where_diffusers_reads_them(copy):
    """It looks there for components without a folder, which a download does not refuse."""
    folder = copy()
    shutil.move(folder / "scheduler" / "scheduler_config.json", folder)
    (folder / "scheduler").rmdir()
    MCVDPipeline._dict_from_json_file(folder / INDEX)
    edit(folder, "scheduler_config.json", num_train_timesteps=10**12)
    refused(
        folder, "scheduler_config.json", load=lambda folder: MCVDPipeline._dict_from_json_file(f"{folder}/{INDEX}")
    )


def test_settings_that_are_no_guiders_are_refused(copy):
    folder = copy()
    pipe = MCVDPipeline.from_pretrained(folder, guider=ClassifierFreeGuidance(2.0))
    pipe.save_pretrained(folder)
    assert MCVDPipeline.from_pretrained(folder).guider.config.guidance_scale == 2
    edit(folder, "guider/guider_config.json", guidance_scale="evil")
    refused(folder, "guider/guider_config.json", "`guidance_scale` must be a float")
    for number in (float("nan"), float("inf"), -1e30, 10**400):
        edit(folder, "guider/guider_config.json", guidance_scale=number)
        refused(folder, "guider/guider_config.json", "`guidance_scale` must be at most 1,000,000")


# --------------------------------------------------------------------------------------------------------------------
# What stays possible


def test_components_can_be_given(copy):
    folder, pipe = copy(), ROW.make()
    loaded = MCVDPipeline.from_pretrained(folder, unet=pipe.unet, scheduler=pipe.scheduler)
    assert loaded.unet is pipe.unet and loaded.scheduler is pipe.scheduler


def test_an_index_alone_is_read_as_a_download_does(copy):
    """Diffusers fetches `model_index.json` first, to learn what else to fetch."""
    folder = copy()
    for name in ("unet", "scheduler"):
        shutil.rmtree(folder / name)
    index = MCVDPipeline._dict_from_json_file(folder / INDEX)
    assert index["unet"] == ["mcvd_diffusers", "MCVDUNet2DModel"]


def test_classes_of_the_users_own_that_are_imported_load(copy, monkeypatch):
    folder = copy()
    module = types.ModuleType("my_networks")
    names = {name: getattr(sys.modules["diffusers"], name) for name in ("ModelMixin", "SchedulerMixin")}
    module.__dict__.update(names, DiffusionPipeline=DiffusionPipeline)
    module.MyUNet = type("MyUNet", (MCVDUNet2DModel,), {"__module__": "my_networks"})
    edit(folder, INDEX, unet=["my_networks", "MyUNet"])
    refused(folder, INDEX, "import it before")
    monkeypatch.setitem(sys.modules, "my_networks", module)
    edit(folder, CONFIG, _class_name="MyUNet")
    assert type(MCVDPipeline.from_pretrained(folder).unet) is module.MyUNet


def test_pipelines_of_the_same_family_load_one_another(copy):
    class MyPipeline(MCVDPipeline):
        pass

    folder = copy()
    assert type(MyPipeline.from_pretrained(folder)) is MyPipeline
    edit(folder, INDEX, _class_name="MyPipeline")
    assert type(MCVDPipeline.from_pretrained(folder)) is MCVDPipeline


def test_entries_of_other_versions_are_left_to_diffusers(copy):
    folder = copy()
    edit(folder, INDEX, from_the_future=True, _diffusers_version="9.0.0")
    save_with(folder, from_the_future="x")
    edit(folder, SCHEDULER, from_the_future=[1])
    MCVDPipeline.from_pretrained(folder)


# --------------------------------------------------------------------------------------------------------------------
# The context encoder


ENCODER = "context_encoder/diffusion_pytorch_model.safetensors"
ENCODER_CONFIG = "context_encoder/config.json"
CLASSES = {"lgcvd": "LGCVDContextEncoder", "rvd": "RVDContextEncoder"}


@pytest.fixture(scope="module", params=["lgcvd", "rvd"])
def with_encoder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    pipe = context_pipeline(request.param)
    pipe.save_pretrained(place / "whole")
    pipe.save_pretrained(place / "sharded", max_shard_size="20KB")
    pipe.save_pretrained(place / "variant", variant="fp16")
    return request.param, place


@pytest.fixture
def encoder_copy(with_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))

    def make(kind="whole"):
        return shutil.copytree(with_encoder[1] / kind, tmp_path / kind)

    yield make
    assert not (tmp_path / "marker").exists(), "code of a checkpoint was run"


def test_a_saved_encoder_that_nobody_has_changed_loads(encoder_copy, with_encoder):
    expected = context_pipeline(with_encoder[0]).context_encoder.state_dict()
    for kind in ("whole", "sharded", "variant"):
        options = {"variant": "fp16"} if kind == "variant" else {}
        loaded = MCVDPipeline.from_pretrained(encoder_copy(kind), **options).context_encoder
        assert type(loaded).__name__ == CLASSES[with_encoder[0]]
        assert all(torch.equal(x, expected[name]) for name, x in loaded.state_dict().items())


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_encoder_is_refused(encoder_copy, damage):
    folder = encoder_copy()
    data = (folder / ENCODER).read_bytes()
    (folder / ENCODER).write_bytes(DAMAGES[damage](data, header_size(folder / ENCODER)))
    refused(folder, ENCODER)


ENTRIES = {
    "a denoiser": ["mcvd_diffusers", "LGCVDUNet2DModel"],
    "a network of Diffusers": ["diffusers", "UNet2DModel"],
    "a module that is not there": ["evil", "LGCVDContextEncoder"],
    "code beside it": ["context_encoder", "Evil"],
    "a module that could be imported": ["antigravity", "fly"],
    "a function": ["os", "system"],
    "text": "LGCVDContextEncoder",
    "half a pair": ["mcvd_diffusers", None],
    "three": ["mcvd_diffusers", "LGCVDContextEncoder", "x"],
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_encoder_of_another_class_is_refused(encoder_copy, entry):
    folder = encoder_copy()
    (folder / "context_encoder" / "context_encoder.py").write_text(WRITES_MARKER)
    edit(folder, INDEX, context_encoder=ENTRIES[entry])
    refused(folder, INDEX)


def test_the_other_systems_encoder_is_refused(encoder_copy, with_encoder):
    other = {"lgcvd": "rvd", "rvd": "lgcvd"}[with_encoder[0]]
    folder = encoder_copy()
    edit(folder, INDEX, context_encoder=["mcvd_diffusers", CLASSES[other]])
    refused(folder, ENCODER_CONFIG)
    context_pipeline(other).context_encoder.save_pretrained(folder / "context_encoder")
    with pytest.raises(ValueError, match="`context_encoder`.*not trained together"):
        MCVDPipeline.from_pretrained(folder)


@pytest.mark.parametrize("entry", [[None, None], ...], ids=["none", "no entry"])
def test_a_network_without_the_encoder_that_it_needs_is_refused(encoder_copy, entry):
    folder = encoder_copy()
    edit(folder, INDEX, context_encoder=entry)
    with pytest.raises(ValueError, match="`context_encoder` must be given"):
        MCVDPipeline.from_pretrained(folder)
    shutil.rmtree(folder / "context_encoder")
    with pytest.raises(ValueError, match="`context_encoder` must be given"):
        MCVDPipeline.from_pretrained(folder)


def test_an_encoder_that_is_not_there_is_named(encoder_copy):
    folder = encoder_copy()
    (folder / ENCODER).unlink()
    refused(folder, ENCODER)
    shutil.rmtree(folder / "context_encoder")
    with pytest.raises(FileNotFoundError, match="context_encoder"):
        MCVDPipeline.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_what_a_pickle_in_the_encoders_place_asks_for_is_not_done(encoder_copy, kind):
    folder = encoder_copy(kind)
    for path in (folder / "context_encoder").glob("*.safetensors"):
        path.unlink()
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
        (folder / "context_encoder" / name).write_bytes(pickle.dumps(Evil()))
    refused(folder, "context_encoder/diffusion_pytorch_model")


@pytest.mark.parametrize("name", NAMES)
def test_an_index_of_the_encoders_shards_that_names_other_files_is_refused(encoder_copy, name):
    folder = encoder_copy("sharded")
    path = folder / f"{ENCODER}.index.json"
    content = json.loads(path.read_text())
    content["weight_map"][next(iter(content["weight_map"]))] = NAMES[name]
    path.write_text(json.dumps(content))
    refused(folder, f"{ENCODER}.index.json")


def test_a_shard_of_the_encoder_that_is_missing_or_damaged_is_refused(encoder_copy):
    folder = encoder_copy("sharded")
    shard = sorted((folder / "context_encoder").glob("*-of-*.safetensors"))[1]
    data = shard.read_bytes()
    shard.write_bytes(flipped(data, len(data) - 1))
    refused(folder, shard.relative_to(folder))
    shard.unlink()
    refused(folder, shard.relative_to(folder))


ENCODER_CONFIGS = [
    {"in_channels": 10**6},
    {"in_channels": 10**400},
    {"in_channels": True},
    {"in_channels": None},
    {"in_channels": 2},
    {"_class_name": "LGCVDUNet2DModel"},
    {"_class_name": "Evil"},
    {"_class_name": ["evil", "Evil"]},
    {"quantization_config": {"quant_method": "torchao"}},
    {"max_frames": 10**9},
    {"max_frames": "4"},
    {"max_frames": 65_536},
    {"block_out_channels": [60_000, 60_000]},
    {"block_out_channels": [8] * 10**5},
    {"block_out_channels": {}},
    {"layers_per_block": 10**6},
    {"attention_levels": [10**9]},
    {"attention_head_dim": 0},
    {"context_block_out_channels": [60_000, 60_000]},
    {"context_block_out_channels": [8] * 10**5},
    {"context_block_out_channels": "evil"},
    {"predictor_block_out_channels": [10**6]},
    {"predictor_block_out_channels": None},
    {"scale": float("nan")},
    {"scale": 0},
    {"scale": "1"},
    {"clip_range": -1},
    {"norm_num_groups": 10**9},
    {"norm_num_groups": 0},
]


def test_an_encoders_config_that_is_none_is_refused(encoder_copy):
    folder = encoder_copy()
    content = json.loads((folder / ENCODER_CONFIG).read_text())
    for change in ENCODER_CONFIGS:
        if change.keys() <= content.keys() | {"quantization_config"}:  # not the other encoder's
            edit(folder, ENCODER_CONFIG, **change)
            refused(folder, "context_encoder")
            (folder / ENCODER_CONFIG).write_text(json.dumps(content))


def test_an_encoders_config_that_was_edited_is_refused(encoder_copy, with_encoder):
    folder = encoder_copy()
    edit(folder, ENCODER_CONFIG, **{"lgcvd": {"original_quirks": True}, "rvd": {"scale": 2.0}}[with_encoder[0]])
    refused(folder, ENCODER_CONFIG, "is not the config that")


def test_code_in_the_encoders_folder_is_refused(encoder_copy):
    folder = encoder_copy()
    (folder / "context_encoder" / "mcvd_diffusers.py").write_text(WRITES_MARKER)
    refused(folder, "context_encoder/mcvd_diffusers.py")
