"""Saving and loading as a user does: what the folder holds, and that it loads anywhere the package is installed."""

import json
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines import pipeline_loading_utils

import mcvd_diffusers
from hub_server import HubServer
from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel, hub


def tiny_pipeline(conditioning):
    torch.manual_seed(0)
    unet = MCVDUNet2DModel(
        sample_size=8,
        in_channels=1,
        num_past_frames=2,
        num_frames=2,
        num_future_frames=1,
        conditioning=conditioning,
        spatin_channels=8,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        layers_per_block=1,
    )
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return MCVDPipeline(unet, DDIMScheduler(prediction_type="v_prediction"), final_denoise=False)


SAMPLE = """
pipe.set_progress_bar_config(disable=True)
past = torch.linspace(0, 1, 2 * 64).reshape(1, 2, 1, 8, 8)
video = pipe(past_frames=past, num_frames=5, num_inference_steps=3, output_type="pt",
             generator=torch.Generator().manual_seed(0)).frames
"""


@pytest.mark.parametrize("conditioning", ["concat", "spatin"])
def test_pipeline_loads_bit_equal_in_a_process_that_imported_only_this_package(conditioning, tmp_path):
    pipe = tiny_pipeline(conditioning)
    pipe.save_pretrained(tmp_path / "saved")
    scope = {"pipe": pipe, "torch": torch}
    exec(SAMPLE, scope)
    code = (
        f"import mcvd_diffusers; pipe = mcvd_diffusers.MCVDPipeline.from_pretrained({str(tmp_path / 'saved')!r})\n"
        f"import torch; torch.set_num_threads(1)\n{SAMPLE}\ntorch.save(video, {str(tmp_path / 'video.pt')!r})\n"
        f"pipe.save_pretrained({str(tmp_path / 'again')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    assert torch.equal(torch.load(tmp_path / "video.pt"), scope["video"])
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    indices = [json.loads((tmp_path / folder / "model_index.json").read_text()) for folder in ("saved", "again")]
    indices[1].pop("_name_or_path", None)  # Diffusers notes where a pipeline was loaded from
    assert indices[0] == indices[1]


def test_saved_pipeline_names_this_package(tmp_path):
    tiny_pipeline("concat").save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "MCVDPipeline"
    assert index["unet"] == ["mcvd_diffusers", "MCVDUNet2DModel"]
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert index["final_denoise"] is False


def test_options_of_the_pipeline_are_saved(tmp_path):
    pipe = tiny_pipeline("concat")
    MCVDPipeline(pipe.unet, pipe.scheduler, final_denoise=True).save_pretrained(tmp_path)
    assert MCVDPipeline.from_pretrained(tmp_path).config.final_denoise is True


def test_every_component_is_an_attribute_of_the_package():
    assert {"ModelMixin", "SchedulerMixin", "DiffusionPipeline"} == set(
        pipeline_loading_utils.LOADABLE_CLASSES["mcvd_diffusers"]
    )
    for name in mcvd_diffusers.__all__:
        assert hasattr(mcvd_diffusers, name)


def test_diffusers_that_keeps_its_table_elsewhere_is_named(monkeypatch):
    monkeypatch.delattr(pipeline_loading_utils, "LOADABLE_CLASSES")
    with pytest.raises(ImportError, match="no `pipelines.pipeline_loading_utils.LOADABLE_CLASSES`.*pip install"):
        hub.register_with_diffusers()


@pytest.mark.parametrize("table", [[], {"diffusers": ["ModelMixin"]}], ids=["a list", "a dictionary of lists"])
def test_diffusers_whose_table_has_another_form_is_named(monkeypatch, table):
    monkeypatch.setattr(pipeline_loading_utils, "LOADABLE_CLASSES", table)
    with pytest.raises(ImportError, match="LOADABLE_CLASSES` is no dictionary of dictionaries.*pip install"):
        hub.register_with_diffusers()


def as_before_registration(component):
    return component.__module__, component.__name__


def in_another_form(component):
    raise AttributeError("moved")


@pytest.mark.parametrize("function", [as_before_registration, in_another_form, None])
def test_diffusers_that_does_not_ask_the_table_is_named(monkeypatch, function):
    monkeypatch.setattr(pipeline_loading_utils, "_fetch_class_library_tuple", function)
    hub.register_with_diffusers()
    with pytest.raises(ImportError, match="would save a MCVDUNet2DModel as .*LOADABLE_CLASSES.*pip install"):
        hub.register_with_diffusers(MCVDUNet2DModel)


def test_classes_of_this_package_are_recorded_under_its_name():
    for each in (MCVDUNet2DModel, MCVDPipeline):
        assert pipeline_loading_utils._fetch_class_library_tuple(each) == ("mcvd_diffusers", each.__name__)
        assert getattr(diffusers, each.__name__) is each


def test_registration_leaves_what_diffusers_has_itself(monkeypatch):
    theirs = type("MCVDPipeline", (), {})
    monkeypatch.setattr(diffusers, "MCVDPipeline", theirs)
    hub.register_with_diffusers(MCVDPipeline)
    assert diffusers.MCVDPipeline is theirs


GENERIC = """
import sys
import mcvd_diffusers
import torch
from diffusers import AutoModel, DiffusionPipeline

source = sys.argv[1]
own, generic = (each.from_pretrained(source) for each in (mcvd_diffusers.MCVDPipeline, DiffusionPipeline))
assert type(generic) is type(own) is mcvd_diffusers.MCVDPipeline, type(generic)
networks = [generic.unet, AutoModel.from_pretrained(source, subfolder="unet"), *extra]
for network in networks:
    assert type(network) is mcvd_diffusers.MCVDUNet2DModel, type(network)
    assert all(torch.equal(x, y) for x, y in zip(network.state_dict().values(), own.unet.state_dict().values(), strict=True))
"""


def test_generic_loaders_of_diffusers_find_this_package_in_a_folder(tmp_path):
    tiny_pipeline("concat").save_pretrained(tmp_path)
    alone = GENERIC.replace("*extra", "AutoModel.from_pretrained(source + '/unet')")
    subprocess.run([sys.executable, "-c", alone, str(tmp_path)], check=True, cwd=Path(__file__).parents[1])


ON_THE_HUB = """
import json, os, huggingface_hub as hf

folder, marker = sys.argv[2:]
index = json.load(open(os.path.join(folder, "model_index.json")))


def publish(repo_id, **changes):
    with open(os.path.join(folder, "model_index.json"), "w") as file:
        json.dump(index | changes, file)
    hf.create_repo(repo_id)
    hf.upload_folder(repo_id=repo_id, folder_path=folder)


def refusal(repo_id):
    try:
        mcvd_diffusers.MCVDPipeline.from_pretrained(repo_id)
    except ValueError as error:
        return str(error)
    raise AssertionError("was not refused")


publish("alice/system", unet=["os", "system"])
assert "model_index.json: `unet` must be a MCVDUNet2DModel" in refusal("alice/system")
for name in ("pipeline_evil.py", "evil.py", "unet/evil.py"):
    with open(os.path.join(folder, name), "w") as file:
        file.write(f"open({marker!r}, 'w')")
publish("alice/code", _class_name=["pipeline_evil", "MCVDPipeline"])
assert "never runs code of a checkpoint" in refusal("alice/code")
publish("alice/component", unet=["evil", "MCVDUNet2DModel"])
assert "Nothing is imported because a file names it" in refusal("alice/component")
path = os.path.join(folder, "scheduler", "scheduler_config.json")
settings = json.load(open(path))
with open(path, "w") as file:
    json.dump(settings | {"num_train_timesteps": 10**12}, file)
publish("alice/scheduler")
assert "scheduler_config.json: `num_train_timesteps` must be" in refusal("alice/scheduler")
assert not os.path.exists(marker)
"""


def test_generic_loaders_find_this_package_on_the_hub_and_hostile_repositories_are_refused(tmp_path):
    tiny_pipeline("concat").save_pretrained(tmp_path / "pipeline")
    with HubServer(tokens={"hf_alice": "alice"}) as server:
        upload = (
            "import sys, huggingface_hub as hf; hf.create_repo('alice/good');"
            "hf.upload_folder(repo_id='alice/good', folder_path=sys.argv[2])\n"
        )
        script = upload + GENERIC.replace("*extra", "") + ON_THE_HUB
        arguments = ["alice/good", str(tmp_path / "pipeline"), str(tmp_path / "marker")]
        subprocess.run(
            [sys.executable, "-c", script, *arguments],
            env=server.environment(tmp_path / "home", token="hf_alice"),
            check=True,
            cwd=Path(__file__).parents[1],
        )
    assert not (tmp_path / "marker").exists()


def test_scheduler_can_be_swapped_and_saved(tmp_path):
    pipe = tiny_pipeline("concat")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.save_pretrained(tmp_path)
    loaded = MCVDPipeline.from_pretrained(tmp_path)
    assert loaded.scheduler.config.timestep_spacing == "trailing"
    assert loaded.scheduler.config.prediction_type == "v_prediction"


AVERAGED_FROM_THE_HUB = """
import sys, huggingface_hub as hf, numpy as np
from mcvd_diffusers.cli import main

hf.create_repo("alice/both")
hf.upload_folder(repo_id="alice/both", folder_path=sys.argv[1])
for model in (sys.argv[1], "alice/both"):
    for name, more in {"default": [], "raw": ["--variant", "raw"]}.items():
        output = f"{sys.argv[2]}/{len(model)}-{name}.npy"
        assert main(["generate", model, "--num_frames", "2", "--num_inference_steps", "2", "--output", output, *more]) == 0
files = [np.load(f"{sys.argv[2]}/{len(model)}-{name}.npy") for model in (sys.argv[1], "alice/both") for name in ("default", "raw")]
assert np.array_equal(files[0], files[2]) and np.array_equal(files[1], files[3]) and not np.array_equal(files[0], files[1])
"""


@pytest.mark.slow
def test_a_folder_and_its_copy_on_the_hub_are_sampled_by_the_same_weights(tmp_path):
    pipe = tiny_pipeline("concat")
    pipe.save_pretrained(tmp_path / "both")
    with torch.no_grad():
        pipe.unet.conv_out.bias.add_(1)
    pipe.unet.save_pretrained(tmp_path / "both" / "unet", variant="ema")
    with HubServer(tokens={"hf_alice": "alice"}) as server:
        subprocess.run(
            [sys.executable, "-c", AVERAGED_FROM_THE_HUB, str(tmp_path / "both"), str(tmp_path)],
            env=server.environment(tmp_path / "home", token="hf_alice"),
            check=True,
            cwd=Path(__file__).parents[1],
        )


def test_a_path_that_is_no_folder_is_refused_by_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        MCVDPipeline.from_pretrained(tmp_path / "nowhere")


NOT_THERE = """
from mcvd_diffusers import MCVDPipeline

while True:
    try:
        MCVDPipeline.from_pretrained(input())
    except EOFError:
        break
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


@pytest.mark.slow
def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_told_with_both(tmp_path):
    here = f"There is no folder {{}} here (working directory {tmp_path.resolve()}), and "
    with HubServer(tokens={"hf_alice": "alice"}) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", NOT_THERE],
            env=server.environment(tmp_path / "home", token="hf_alice")
            | {"PYTHONPATH": str(Path(__file__).parents[1])},
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

        def error_of(name):
            print(name, file=process.stdin, flush=True)
            return process.stdout.readline().strip()

        expected = "OSError " + here.format("checkpoints/digits")
        assert error_of("checkpoints/digits").startswith(expected + "the Hub has no model of this name")
        expected_of_no_id = "ValueError " + here.format("runs/mine/checkpoint-5")
        assert error_of("runs/mine/checkpoint-5") == expected_of_no_id + (
            "it is no id on the Hub, which would be user/name."
        )
    # Nobody answers any more.
    error = error_of("checkpoints/digits")
    assert error.startswith(expected + "the Hub cannot be asked for a model of this name (") and "onnect" in error
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_run_that_was_stopped_names_its_newest_checkpoint(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10"):
        tiny_pipeline("concat").save_pretrained(tmp_path / name)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-best" / "model_index.json").touch()
    for folder in (tmp_path, str(tmp_path)):
        with pytest.raises(FileNotFoundError, match="has no model_index.json.* not come to its end") as caught:
            MCVDPipeline.from_pretrained(folder)
    named = str(caught.value).split('from_pretrained("')[1].split('"')[0]
    assert named == str(tmp_path / "checkpoint-10")
    assert MCVDPipeline.from_pretrained(named).unet is not None
