"""Saving and loading as a user does: what the folder holds, and that it loads anywhere the package is installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines import pipeline_loading_utils

import mcvd_diffusers
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


def test_scheduler_can_be_swapped_and_saved(tmp_path):
    pipe = tiny_pipeline("concat")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.save_pretrained(tmp_path)
    loaded = MCVDPipeline.from_pretrained(tmp_path)
    assert loaded.scheduler.config.timestep_spacing == "trailing"
    assert loaded.scheduler.config.prediction_type == "v_prediction"
