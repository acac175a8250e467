"""What Diffusers asks of a model, asked of each network: forward, saving, memory, attention, training, compiling.

A network joins by a row in `contract_rows`. What holds for one network alone is in `tests/models`.
"""

import ast
import copy
import inspect
import json
import re
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import is_dataclass

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers.models import modeling_utils
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.training_utils import EMAModel
from diffusers.utils import BaseOutput
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import mcvd_diffusers
from contract_rows import NETWORKS


HALF = [torch.float16, torch.bfloat16]
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_compiler = pytest.mark.slow  # each compiles for seconds


@pytest.fixture(params=NETWORKS, ids=lambda row: row.name)
def row(request):
    return request.param


@torch.no_grad()
def run(network, inputs):
    return network(**inputs, return_dict=False)[0]


def cast(inputs, to):
    """Inputs on another device, or floating point ones in another dtype."""
    is_kept = isinstance(to, torch.dtype)
    return tree_map(lambda value: value if is_kept and not value.is_floating_point() else value.to(to), inputs)


def init_arguments(row):
    return [name for name in inspect.signature(row.network_class.__init__).parameters if name != "self"]


def as_json(value):
    return json.loads(json.dumps(value))


def assert_same_state(network, expected):
    """The same parameters and buffers, those that are not saved included, to the bit."""
    for tensors in ("named_parameters", "named_buffers"):
        got, want = dict(getattr(network, tensors)()), dict(getattr(expected, tensors)())
        assert got.keys() == want.keys()
        for name in want:
            assert got[name].dtype == want[name].dtype and torch.equal(got[name], want[name]), name


# --------------------------------------------------------------------------------------------------------------------
# Forward


def test_forward_takes_sample_and_timestep_first_and_no_argument_by_mutable_default(row):
    forward = inspect.signature(row.network_class.forward).parameters
    assert list(forward)[1:3] == ["sample", "timestep"]
    assert forward["return_dict"].default is True
    assert row.inputs(1).keys() <= forward.keys()
    for function in (row.network_class.__init__, row.network_class.forward):
        for parameter in inspect.signature(function).parameters.values():
            assert not isinstance(parameter.default, (list, dict, set, torch.Tensor)), parameter


def test_tuple_holds_what_the_output_holds(row):
    network, inputs = row.make(), row.inputs(2)
    with torch.no_grad():
        output, as_tuple = network(**inputs), network(**inputs, return_dict=False)
    assert isinstance(output, BaseOutput) and is_dataclass(output)
    assert type(as_tuple) is tuple and len(as_tuple) == len(output.to_tuple()) == 1
    assert torch.equal(as_tuple[0], output.sample)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_output_has_shape_and_dtype_of_the_input(row, dtype, batch_size):
    out = run(row.make().to(dtype), cast(row.inputs(batch_size), dtype))
    assert out.shape == (batch_size, *row.output_shape)
    assert out.dtype == dtype and torch.isfinite(out).all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_kept_from_layer_to_layer(row, dtype):
    """A layer that is handed float32 by mistake fails on a GPU, or doubles its cost."""
    network, inputs = row.make().to(dtype), cast(row.inputs(2), dtype)
    others = []

    def check(module, args, output):
        dtypes = {x.dtype for x in tree_leaves((args, output)) if torch.is_tensor(x) and x.is_floating_point()}
        if dtypes - {dtype}:
            others.append((type(module).__name__, dtypes))

    for module in network.modules():
        module.register_forward_hook(check)
    run(network, inputs)
    assert others == []


def test_no_operation_computes_in_float64_and_no_file_imports_numpy(row):
    """Float64 is not there on every accelerator, and NumPy breaks the graph of a compiled network."""
    dtypes = Counter()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            result = operation(*args, **(kwargs or {}))
            dtypes.update(x.dtype for x in tree_leaves(result) if torch.is_tensor(x))
            return result

    with Watch():
        run(row.make(), row.inputs(2))
    assert dtypes[torch.float32] and not dtypes[torch.float64]
    tree = ast.parse(inspect.getsource(inspect.getmodule(row.network_class)))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert not {name.split(".")[0] for name in imported} & {"numpy", "einops"}


def test_same_inputs_give_the_same_output(row):
    network = row.make()
    assert torch.equal(run(network, row.inputs(2)), run(network, row.inputs(2)))


def test_forward_changes_no_input_no_weight_and_nothing_global(row):
    network, inputs = row.make(), row.inputs(2)
    weights = copy.deepcopy(network.state_dict())
    versions = [value._version for value in tree_leaves(inputs)]

    def globals_of_torch():
        return (
            torch.get_rng_state().tolist(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            torch.get_num_threads(),
            _AttentionBackendRegistry.get_active_backend(),
        )

    before = globals_of_torch()
    run(network, inputs)
    assert globals_of_torch() == before
    assert [value._version for value in tree_leaves(inputs)] == versions
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_an_item_of_a_batch_is_what_it_is_alone(row):
    network, inputs = row.make(), row.inputs(3)
    together = run(network, inputs)
    for i in range(3):
        alone = run(network, tree_map(lambda value: value[i : i + 1], inputs))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "timestep",
    [7, 7.0, torch.tensor(7), torch.tensor(7, dtype=torch.uint8), torch.tensor([7]), torch.tensor([7.0, 7.0])],
    ids=repr,
)
def test_timestep_may_be_a_number_or_a_tensor_of_any_shape(row, timestep):
    network, inputs = row.make(), row.inputs(2)
    expected = run(network, inputs | {"timestep": torch.tensor([7, 7])})
    assert torch.equal(run(network, inputs | {"timestep": timestep}), expected)
    assert not torch.equal(run(network, inputs | {"timestep": torch.tensor([8, 8])}), expected)


def test_a_copy_of_a_network_is_the_same_network(row):
    network = row.make()
    copied = copy.deepcopy(network)
    assert torch.equal(run(network, row.inputs(2)), run(copied, row.inputs(2)))
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in network.parameters()}


# --------------------------------------------------------------------------------------------------------------------
# What a model says of itself


def test_network_is_a_name_of_the_package(row):
    output = type(row.make()(**row.inputs(1)))
    for exported in (row.network_class, output):
        assert getattr(mcvd_diffusers, exported.__name__) is exported
        assert exported.__name__ in mcvd_diffusers.__all__
    # `checks_weights` and `publishes_networks` were applied.
    for name in ("_load_pretrained_model", "from_pretrained", "save_pretrained", "push_to_hub"):
        assert name in vars(row.network_class), name


def test_class_attributes_name_what_exists(row):
    network = row.make()
    # They are the class's, of whose networks one may have what another has not.
    networks = [other.make() for other in NETWORKS if other.network_class is row.network_class]
    classes = {type(module).__name__ for other in networks for module in other.modules()}
    leaves = [name for other in networks for name, module in other.named_modules() if not list(module.children())]
    assert network._no_split_modules and set(network._no_split_modules) <= classes
    assert network._repeated_blocks and set(network._repeated_blocks) <= classes
    for pattern in network._skip_layerwise_casting_patterns:
        assert any(re.search(pattern, name) for name in leaves), pattern
    for name in network._keep_in_fp32_modules or []:
        assert any(name in parameter.split(".") for parameter, _ in network.named_parameters()), name


def test_number_of_parameters_memory_dtype_and_device_are_what_they_are(row):
    network = row.make()
    parameters, buffers = list(network.parameters()), list(network.buffers())
    assert network.num_parameters() == sum(p.numel() for p in parameters) > 0
    parameters[0].requires_grad_(False)
    assert network.num_parameters(only_trainable=True) == network.num_parameters() - parameters[0].numel()
    embeddings = [m.weight.numel() for m in network.modules() if isinstance(m, torch.nn.Embedding)]
    assert network.num_parameters(exclude_embeddings=True) == network.num_parameters() - sum(embeddings)
    assert network.get_memory_footprint() == sum(x.nbytes for x in parameters + buffers)
    assert network.dtype == torch.float32 and network.to(torch.bfloat16).dtype == torch.bfloat16
    assert network.device == torch.device("cpu") and network.to("meta").device == torch.device("meta")


def test_attributes_that_are_not_there_are_refused_and_those_of_the_config_warn(row):
    network = row.make()
    with pytest.raises(
        AttributeError, match=f"'{row.network_class.__name__}' object has no attribute 'does_not_exist'"
    ):
        network.does_not_exist
    network.register_to_config(extra=5)
    with pytest.warns(FutureWarning):
        assert network.extra == 5


def test_methods_that_use_weights_run_the_hook_that_brings_the_weights(row):
    """Of offloading: a method other than `forward` must call it, by Diffusers' `apply_forward_hook`."""
    network, inputs = row.make(), row.inputs(1)

    class Count(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    hook = Count()
    add_hook_to_module(network, hook)
    for name, method in vars(row.network_class).items():
        parameters = inspect.signature(method).parameters if inspect.isfunction(method) else {}
        if not name.startswith("_") and name != "forward" and "sample" in parameters:
            before = hook.calls
            getattr(network, name)(**{key: value for key, value in inputs.items() if key in parameters})
            assert hook.calls == before + 1, name


# --------------------------------------------------------------------------------------------------------------------
# Config


def test_config_holds_every_argument_as_json_and_gives_the_same_network(row):
    network = row.make()
    config = json.loads(network.to_json_string())
    assert set(init_arguments(row)) <= config.keys()
    again = row.network_class.from_config(config)  # with lists where there were tuples
    for name in init_arguments(row):
        assert as_json(again.config[name]) == as_json(network.config[name]), name
        if name in row.config:
            assert as_json(again.config[name]) == as_json(row.config[name]), name
    again.load_state_dict(network.state_dict())
    assert torch.equal(run(again.eval(), row.inputs(2)), run(network, row.inputs(2)))


def test_saved_config_gives_the_same_network(row, tmp_path):
    network = row.make()
    network.save_config(tmp_path)
    config = row.network_class.load_config(tmp_path)
    assert config["_class_name"] == row.network_class.__name__
    again = row.network_class.from_config(config)
    for name in init_arguments(row):
        assert as_json(again.config[name]) == as_json(network.config[name]), name
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    assert {name: value.shape for name, value in again.state_dict().items()} == shapes


# --------------------------------------------------------------------------------------------------------------------
# Saving and loading


def test_saved_and_loaded_network_is_bit_equal(row, tmp_path):
    network = row.make()
    network.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    loaded = row.network_class.from_pretrained(tmp_path)
    assert type(loaded) is row.network_class and not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert_same_state(loaded, network)
    assert torch.equal(run(loaded, row.inputs(2)), run(network, row.inputs(2)))
    for name in init_arguments(row):
        assert as_json(loaded.config[name]) == as_json(network.config[name]), name


def test_loaded_network_saves_the_same_files(row, tmp_path):
    row.make().save_pretrained(tmp_path / "first")
    row.network_class.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"low_cpu_mem_usage": True},
        {"low_cpu_mem_usage": False},
        {"disable_mmap": True},
        {"use_safetensors": True},
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}},
        {"device_map": "auto"},
    ],
    ids=str,
)
def test_every_way_of_loading_gives_the_same_network(row, options, tmp_path):
    network = row.make()
    network.save_pretrained(tmp_path)
    if options.get("device_map") == "auto":
        options = options | {"max_memory": {"cpu": "1GB"}}
    loaded = row.network_class.from_pretrained(tmp_path, **options)
    assert_same_state(loaded, network)
    assert torch.equal(run(loaded, row.inputs(2)), run(network, row.inputs(2)))
    if "device_map" in options:
        assert set(map(str, loaded.hf_device_map.values())) == {"cpu"}


def test_loading_information_lists_nothing_for_a_whole_network(row, tmp_path):
    row.make().save_pretrained(tmp_path)
    loaded, info = row.network_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is row.network_class
    assert set(info) == {"missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"}
    assert not any(info.values())


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("argument, low_cpu_mem_usage", [("torch_dtype", True), ("dtype", False)])
def test_network_loads_in_the_dtype_that_is_asked_for(row, argument, dtype, low_cpu_mem_usage, tmp_path):
    network = row.make()
    network.save_pretrained(tmp_path)
    options = {argument: dtype, "low_cpu_mem_usage": low_cpu_mem_usage}
    loaded = row.network_class.from_pretrained(tmp_path, **options)
    assert torch.get_default_dtype() == torch.float32
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    inputs = cast(row.inputs(2), dtype)
    assert torch.equal(run(loaded, inputs), run(network.to(dtype), inputs))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_network_saved_in_half_precision_loads_in_it(row, dtype, tmp_path):
    network = row.make().to(dtype)
    network.save_pretrained(tmp_path)
    loaded = row.network_class.from_pretrained(tmp_path, torch_dtype=dtype)
    for (name, got), want in zip(loaded.named_parameters(), network.parameters(), strict=True):
        assert got.dtype == dtype and torch.equal(got, want), name
    inputs = cast(row.inputs(2), dtype)
    assert torch.equal(run(loaded, inputs), run(network, inputs))


@pytest.mark.parametrize("variant", ["fp16", "ema"])
def test_variant_has_a_file_of_its_own(row, variant, tmp_path):
    network = row.make()
    network.save_pretrained(tmp_path, variant=variant)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [f"diffusion_pytorch_model.{variant}.safetensors"]
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        row.network_class.from_pretrained(tmp_path)
    assert_same_state(row.network_class.from_pretrained(tmp_path, variant=variant), network)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("is_parallel", [False, True], ids=["one by one", "in parallel"])
def test_shards_are_loaded_as_one_network(row, variant, is_parallel, tmp_path, monkeypatch):
    network = row.make()
    size = int(0.3 * network.get_memory_footprint())
    network.save_pretrained(tmp_path, variant=variant, max_shard_size=size)
    stem = f"{variant}." if variant else ""
    index = json.loads((tmp_path / f"diffusion_pytorch_model.safetensors.index.{stem}json").read_text())
    files = {path.name for path in tmp_path.glob("*.safetensors")}
    assert len(files) > 2 and set(index["weight_map"].values()) == files
    assert index["weight_map"].keys() == network.state_dict().keys()

    threaded = []
    load = modeling_utils._load_shard_files_with_threadpool
    monkeypatch.setattr(
        modeling_utils,
        "_load_shard_files_with_threadpool",
        lambda *args, **kwargs: threaded.append(True) or load(*args, **kwargs),
    )
    monkeypatch.setattr(modeling_utils, "HF_ENABLE_PARALLEL_LOADING", is_parallel)
    loaded = row.network_class.from_pretrained(tmp_path, variant=variant)
    assert bool(threaded) == is_parallel
    assert_same_state(loaded, network)
    assert torch.equal(run(loaded, row.inputs(2)), run(network, row.inputs(2)))


def test_weights_of_another_shape_are_refused_or_drawn_anew(row, tmp_path):
    network = row.make()
    network.save_pretrained(tmp_path)
    other = {"in_channels": row.config["in_channels"] + 1}
    with pytest.raises((ValueError, RuntimeError), match="size|shape"):
        row.network_class.from_pretrained(tmp_path, **other)
    options = {"ignore_mismatched_sizes": True, "low_cpu_mem_usage": False, "output_loading_info": True}
    loaded, info = row.network_class.from_pretrained(tmp_path, **other, **options)
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    old, new = network.state_dict(), loaded.state_dict()
    assert mismatched == {name for name in old if old[name].shape != new[name].shape} != set()
    assert all(torch.equal(old[name], new[name]) for name in old.keys() - mismatched)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_network_split_between_memory_and_disk_computes_the_same(row, share, tmp_path):
    network = row.make()
    network.save_pretrained(tmp_path / "saved")
    split = {
        "device_map": "auto",
        "max_memory": {"cpu": int(share * network.get_memory_footprint())},
        "offload_folder": tmp_path / "offloaded",
    }
    loaded = row.network_class.from_pretrained(tmp_path / "saved", **split)
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    for name, parameter in loaded.named_parameters():
        part = max((key for key in loaded.hf_device_map if f"{name}.".startswith(f"{key}.")), key=len)
        assert parameter.is_meta == (loaded.hf_device_map[part] == "disk"), name
    for module in loaded.modules():
        if type(module).__name__ in loaded._no_split_modules:
            where = {parameter.is_meta for parameter in module.parameters()}
            assert len(where) == 1, type(module)
    assert torch.equal(run(loaded, row.inputs(2)), run(network, row.inputs(2)))


@gpu
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_network_split_between_gpu_and_memory_computes_the_same(row, share, tmp_path):
    network = row.make()
    network.save_pretrained(tmp_path)
    max_memory = {0: int(share * network.get_memory_footprint()), "cpu": "1GB"}
    loaded = row.network_class.from_pretrained(tmp_path, device_map="auto", max_memory=max_memory)
    assert set(loaded.hf_device_map.values()) == {0, "cpu"}
    expected = run(network.to("cuda"), cast(row.inputs(2), "cuda"))
    torch.testing.assert_close(run(loaded, row.inputs(2)).to("cuda"), expected, atol=1e-5, rtol=0)


# --------------------------------------------------------------------------------------------------------------------
# Memory


def castable(network):
    """Names of the layers that Diffusers' layerwise casting knows."""
    convolutions = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.ConvTranspose2d)
    layers = (*convolutions, torch.nn.Linear, torch.nn.Embedding)
    return {name: module for name, module in network.named_modules() if isinstance(module, layers)}


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layers_stored_in_fp8_compute_in_the_dtype_that_is_asked_for(row, compute_dtype):
    network, inputs = row.make().to(compute_dtype), cast(row.inputs(2), compute_dtype)
    expected, footprint = run(network, inputs), network.get_memory_footprint()
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute_dtype)
    for _ in range(2):
        out = run(network, inputs)
        assert out.dtype == compute_dtype
        error = (out - expected).abs().mean() / expected.abs().mean()
        assert 0 < error < 0.1, error
    assert network.get_memory_footprint() < 0.9 * footprint  # what modulates stays: much, in so small a network
    assert any(module.weight.dtype == torch.float8_e4m3fn for module in castable(network).values())


def test_norms_and_embeddings_are_not_stored_in_fp8(row):
    network = row.make()
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    layers = castable(network)
    kept = {name for name, layer in layers.items() if layer.weight.dtype == torch.float32}
    for name, module in network.named_modules():
        if isinstance(module, (torch.nn.Embedding, TimestepEmbedding)) or "norm" in name.split(".")[-1]:
            below = {layer for layer in layers if layer == name or layer.startswith(f"{name}.")}
            assert below <= kept, name
    for name, parameter in network.named_parameters():
        if parameter.dtype != torch.float32:
            assert name.rpartition(".")[0] in layers.keys() - kept, name


@pytest.mark.parametrize("storage_dtype", [torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_network_with_layerwise_casting_can_be_differentiated(row, storage_dtype):
    network, inputs = row.make().train(), row.inputs(2)
    network.enable_layerwise_casting(storage_dtype=storage_dtype, compute_dtype=torch.float32)
    with torch.amp.autocast("cpu"):
        network(**inputs).sample.square().mean().backward()
    assert all(torch.isfinite(p.grad.float()).all() for p in network.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in network.parameters())


OFFLOAD = [{"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}]


@pytest.mark.parametrize("options", OFFLOAD, ids=lambda options: options["offload_type"])
def test_groups_that_wait_on_disk_are_loaded_for_their_turn(row, options, tmp_path):
    network = row.make()
    expected, state = run(network, row.inputs(2)), copy.deepcopy(network.state_dict())
    network.enable_group_offload(torch.device("cpu"), offload_to_disk_path=tmp_path, **options)
    assert len(list(tmp_path.glob("*.safetensors"))) > len(network.down_blocks)
    if options["offload_type"] == "block_level":  # at the other level Diffusers writes one more file when it runs
        with warnings.catch_warnings():  # the module says that some of it has moved
            warnings.simplefilter("ignore", FutureWarning)
            from diffusers.utils.testing_utils import _check_safetensors_serialization
        assert _check_safetensors_serialization(network, str(tmp_path), **options) == (True, set(), set())
    lost = [name for name, value in network.state_dict().items() if not torch.equal(value, state[name])]
    assert lost  # memory is given back: what stands there now is not the weights
    for _ in range(2):
        torch.testing.assert_close(run(network, row.inputs(2)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", OFFLOAD, ids=lambda options: options["offload_type"])
def test_group_offloading_and_layerwise_casting_go_together(row, options):
    network = row.make()
    expected = run(network, row.inputs(2))
    network.enable_group_offload(torch.device("cpu"), **options)
    network.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    torch.testing.assert_close(run(network, row.inputs(2)), expected, atol=1e-2, rtol=0)


@gpu
@pytest.mark.parametrize("use_stream", [False, True])
@pytest.mark.parametrize("options", OFFLOAD, ids=lambda options: options["offload_type"])
def test_group_offloading_to_memory_computes_the_same_on_a_gpu(row, options, use_stream, tmp_path):
    inputs = cast(row.inputs(2), "cuda")
    expected = run(row.make().to("cuda"), inputs)
    for folder in (None, tmp_path):
        network = row.make()
        network.enable_group_offload(
            torch.device("cuda"), use_stream=use_stream, offload_to_disk_path=folder, **options
        )
        torch.testing.assert_close(run(network, inputs), expected, atol=1e-5, rtol=0)


@gpu
def test_fp8_storage_takes_less_memory_on_a_gpu(row):
    inputs = cast(row.inputs(2), "cuda")
    network = row.make().to("cuda")
    before = torch.cuda.memory_allocated()
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    run(network, inputs)
    assert torch.cuda.memory_allocated() < before


# --------------------------------------------------------------------------------------------------------------------
# Attention


@pytest.fixture
def attention_calls(monkeypatch):
    """How often each of Diffusers' attention functions is called; the choice of the process is restored."""
    calls = Counter()
    before, _ = _AttentionBackendRegistry.get_active_backend()
    for name, function in list(_AttentionBackendRegistry._backends.items()):

        def counted(*args, _name=name, _function=function, **kwargs):
            calls[_name.value] += 1
            return _function(*args, **kwargs)

        monkeypatch.setitem(_AttentionBackendRegistry._backends, name, counted)
    yield calls
    _AttentionBackendRegistry.set_active_backend(before)


def attention_modules(network):
    return {name: module for name, module in network.named_modules() if isinstance(module, AttentionModuleMixin)}


def num_dispatched(row, network):
    """How many of the network's attentions Diffusers' backends compute."""
    return sum(map(row.is_dispatched, attention_modules(network).values()))


@pytest.mark.parametrize("backend", ["native", "_native_math", "_native_flash"])
def test_attention_backend_really_switches(row, backend, attention_calls):
    network = row.make()
    num_attentions = num_dispatched(row, network)
    expected = run(network, row.inputs(2))
    assert attention_calls == Counter(native=num_attentions)

    def check():
        attention_calls.clear()
        if backend == "_native_flash" and row.masks_attention:  # its kernels know no masks
            with pytest.raises(ValueError, match="`attn_mask` is not supported"):
                run(network, row.inputs(2))
            assert attention_calls.keys() == {backend}
        else:
            torch.testing.assert_close(run(network, row.inputs(2)), expected, atol=1e-5, rtol=0)
            assert attention_calls == Counter({backend: num_attentions})

    network.set_attention_backend(backend)
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)  # the network's own choice decides
    check()
    network.reset_attention_backend()
    with attention_backend(backend):
        check()


def test_attention_backend_of_one_network_is_not_that_of_another(row, attention_calls):
    network, other = row.make(), row.make()
    network.set_attention_backend("_native_math")
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
    run(other, row.inputs(1))
    assert attention_calls == Counter(native=num_dispatched(row, other))


def test_unknown_attention_backend_is_refused(row):
    network = row.make()
    with pytest.raises(ValueError, match="must be one of the following"):
        network.set_attention_backend("no such backend")
    assert all(p._attention_backend is None for p in network.attn_processors.values())


@gpu
def test_attention_backend_of_cudnn_is_close_to_native(row, attention_calls):
    network, inputs = row.make().to("cuda", torch.bfloat16), cast(cast(row.inputs(2), "cuda"), torch.bfloat16)
    expected = run(network, inputs)
    network.set_attention_backend("_native_cudnn")
    torch.testing.assert_close(run(network, inputs), expected, atol=1e-2, rtol=1e-2)
    assert attention_calls["_native_cudnn"] == num_dispatched(row, network)


def test_attention_processors_can_be_read_and_replaced(row):
    network = row.make()
    expected = run(network, row.inputs(2))
    processors = network.attn_processors
    assert processors.keys() == {f"{name}.processor" for name in attention_modules(network)} != set()
    calls = Counter()

    def counting(name):
        class Counting(type(processors[name])):
            def __call__(self, *args, **kwargs):
                calls[name] += 1
                return super().__call__(*args, **kwargs)

        return Counting()

    network.set_attn_processor({name: counting(name) for name in processors})
    assert torch.equal(run(network, row.inputs(2)), expected)
    assert calls == dict.fromkeys(processors, 1)

    single = next(iter(processors.values()))
    network.set_attn_processor(single)
    assert all(processor is single for processor in network.attn_processors.values())
    with pytest.raises(ValueError, match="number of processors"):
        network.set_attn_processor({"one.processor": single} | dict.fromkeys(map(str, range(len(processors))), single))


def test_fused_projections_change_nothing_and_can_be_undone(row):
    network = row.make()
    expected, names = run(network, row.inputs(2)), network.state_dict().keys()
    network.fuse_qkv_projections()
    assert all(module.fused_projections for module in attention_modules(network).values())
    # Keys, not queries: what reads another feature map has these two apart.
    weights = [module.to_k.weight for module in attention_modules(network).values()]
    before = [weight.clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.zero_()  # not read while fused
    torch.testing.assert_close(run(network, row.inputs(2)), expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        for weight, value in zip(weights, before):
            weight.copy_(value)
    network.unfuse_qkv_projections()
    assert network.state_dict().keys() == names
    assert torch.equal(run(network, row.inputs(2)), expected)


# --------------------------------------------------------------------------------------------------------------------
# Training


def gradients_of(network, inputs):
    network.zero_grad()
    network(**inputs).sample.square().mean().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def test_every_parameter_gets_a_gradient(row):
    gradients = gradients_of(row.make().train(), row.inputs(2))
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []


def test_gradient_checkpointing_is_switched_on_and_off_everywhere(row):
    network = row.make()
    assert row.network_class._supports_gradient_checkpointing and not network.is_gradient_checkpointing
    switches = [module for module in network.modules() if hasattr(module, "gradient_checkpointing")]
    assert switches
    network.enable_gradient_checkpointing()
    assert network.is_gradient_checkpointing and all(module.gradient_checkpointing for module in switches)
    network.disable_gradient_checkpointing()
    assert not network.is_gradient_checkpointing


@contextmanager
def counting_saved_bytes():
    """What autograd keeps for the backward pass, each storage once."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def test_gradient_checkpointing_changes_no_gradient_and_keeps_less(row):
    network, inputs = row.make().train(), row.inputs(2)
    gradients, kept = [], []
    for is_checkpointing in (False, True):
        if is_checkpointing:
            network.enable_gradient_checkpointing()
        with counting_saved_bytes() as sizes:
            loss = network(**inputs).sample.square().mean()
        kept.append(sum(sizes.values()))
        network.zero_grad()
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters()})
    assert kept[1] < 0.6 * kept[0], kept
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_gradient_checkpointing_covers_every_repeated_block_when_there_is_a_gradient(row):
    network, inputs = row.make().train(), row.inputs(2)
    covered = []

    def checkpoint(module, *args):
        covered.extend(module.modules())
        return module(*args)

    network.enable_gradient_checkpointing(checkpoint)
    run(network, inputs)
    assert covered == []
    network(**inputs)
    blocks = [module for module in network.modules() if type(module).__name__ in network._repeated_blocks]
    assert blocks and all(any(block is module for module in covered) for block in blocks)


def test_average_of_the_weights_is_saved_and_loaded(row, tmp_path):
    network = row.make().train()
    average = EMAModel(network.parameters(), model_cls=row.network_class, model_config=network.config, min_decay=0.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    states = []
    for _ in range(2):  # the first update is taken as it is, the second averaged with it
        gradients_of(network, row.inputs(2))
        optimizer.step()
        average.step(network.parameters())
        states.append(copy.deepcopy(network.state_dict()))
    average.save_pretrained(tmp_path)

    loaded = EMAModel.from_pretrained(tmp_path, row.network_class)
    assert loaded.min_decay == 0.5 and loaded.optimization_step == 2
    averaged = row.make()
    loaded.copy_to(averaged.parameters())
    first, last = states
    assert any(not torch.equal(first[name], last[name]) for name in first)
    for name, value in averaged.state_dict().items():
        torch.testing.assert_close(value, (first[name] + last[name]) / 2, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=gpu)], ids=str)
def test_mixed_precision_gives_finite_gradients_of_float32(row, dtype):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network, inputs = row.make().train().to(device), cast(row.inputs(2), device)
    expected = gradients_of(network, inputs)
    expected = torch.cat([gradient.flatten() for gradient in expected.values()])
    network.zero_grad()
    with torch.amp.autocast(device, dtype=dtype):
        out = network(**inputs).sample
        loss = out.float().square().mean()
    loss.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert out.dtype == dtype and gradient.dtype == torch.float32
    assert (gradient - expected).norm() < 0.1 * expected.norm()


def test_adapters_of_peft_train_the_projections_of_attention(row):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    network, inputs = row.make(), row.inputs(2)
    expected = run(network, inputs)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=True)
    network = peft.inject_adapter_in_model(config, network)
    assert torch.equal(run(network, inputs), expected)  # an adapter begins as nothing
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 4 * len(attention_modules(network)) and all("lora_" in name for name in trained)
    gradients = gradients_of(network.train(), inputs)
    assert {name for name, gradient in gradients.items() if gradient is not None} == trained


# --------------------------------------------------------------------------------------------------------------------
# Compiling


@pytest.fixture
def compiler():
    """Dynamo, with nothing left of other tests; its own backend without code generation is quick and differentiable."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield {"fullgraph": True, "backend": "aot_eager"}
    torch.compiler.reset()


TIMESTEPS = [torch.tensor(999), torch.tensor(500), torch.tensor(0)]


@needs_compiler
def test_whole_network_compiles_without_breaks_and_once_for_all_timesteps(row, compiler):
    network, inputs = row.make(), row.inputs(2)
    compiled = torch.compile(network, **compiler)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for timestep in TIMESTEPS:
            expected = run(network, inputs | {"timestep": timestep})
            out = run(compiled, inputs | {"timestep": timestep})
            torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@needs_compiler
def test_repeated_blocks_compile_once_for_all_timesteps(row, compiler):
    network, inputs = row.make(), row.inputs(2)
    expected = [run(network, inputs | {"timestep": timestep}) for timestep in TIMESTEPS]
    network.compile_repeated_blocks(**compiler)
    repeated = [module for module in network.modules() if type(module).__name__ in network._repeated_blocks]
    for module in network.modules():
        assert (module._compiled_call_impl is not None) == (module in repeated), type(module)
    with torch._dynamo.config.patch(error_on_recompile=True, recompile_limit=1):
        out = [run(network, inputs | {"timestep": timestep}) for timestep in TIMESTEPS]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(repeated)
    torch.testing.assert_close(torch.stack(out), torch.stack(expected), atol=1e-5, rtol=0)


@needs_compiler
def test_exported_network_computes_the_same(row):
    network, inputs = row.make(), row.inputs(2)
    exported = torch.export.export(network, args=(), kwargs=inputs).module()
    other = tree_map(lambda value: value.flip(0), inputs)
    for values in (inputs, other):
        torch.testing.assert_close(exported(**values).sample, network(**values).sample, atol=1e-5, rtol=0)
    assert not torch.equal(run(network, inputs), run(network, other))


@needs_compiler
def test_compiled_network_is_saved_as_the_network(row, tmp_path):
    network = row.make()
    network.compile(backend="eager")
    network.save_pretrained(tmp_path)
    assert_same_state(row.network_class.from_pretrained(tmp_path), network)


@gpu
@needs_compiler
def test_network_compiles_with_group_offloading_on_a_gpu(row, compiler):
    network, inputs = row.make(), cast(row.inputs(2), "cuda")
    expected = run(row.make().to("cuda"), inputs)
    network.enable_group_offload(torch.device("cuda"), use_stream=True, non_blocking=True, **OFFLOAD[0])
    network.compile()
    with torch._dynamo.config.patch(recompile_limit=10_000):
        for _ in range(2):
            torch.testing.assert_close(run(network, inputs), expected, atol=1e-4, rtol=0)
