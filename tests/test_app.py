"""examples/app.py: what it offers, what it makes of a clip, and the page itself in a headless browser.

The browser is Chromium or Chrome from PATH, or that which MCVD_BROWSER names. Where there is none, its tests are skipped, but fail
if MCVD_REQUIRE_BROWSER or CI is set. The picture of the docs is taken from the model of this repository by

    MCVD_SCREENSHOT=docs/images/app.png python -m pytest -m slow tests/test_app.py -k shipped
"""

import base64
import configparser
import contextlib
import importlib.util
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from contract_rows import PIPELINES, shaken
from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel
from mcvd_diffusers.metrics import psnr_of_mse, repeat_last_frame, video_mse
from mcvd_diffusers.normalization import FrameNormalizer
from mcvd_diffusers.visualization import MADE_COLOR


IS_REQUIRED = any(os.environ.get(name, "") not in ("", "0") for name in ("CI", "MCVD_REQUIRE_BROWSER"))
if not IS_REQUIRED:
    pytest.importorskip("gradio", reason="the demo needs gradio: pip install 'mcvd-diffusers[demo]'")

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "checkpoints" / "moving-digits"


@pytest.fixture(scope="module")
def app():
    spec = importlib.util.spec_from_file_location("example_app", ROOT / "examples" / "app.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["example_app"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["example_app"]


def tiny_pipeline(channels=1, normalization=None, **unet):
    """Three past, two made, three future frames of 16x16."""
    counts = {"num_past_frames": 3, "num_frames": 2, "num_future_frames": 3, "drop_past": 0.5, "drop_future": 0.5}
    levels = {"block_out_channels": (8, 16), "down_block_types": ("DownBlock2D",) * 2, "layers_per_block": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = shaken(MCVDUNet2DModel(**{"sample_size": 16, "in_channels": channels, **counts, **levels, **unet}))
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=True)
    pipe = MCVDPipeline(network, scheduler, num_inference_steps=4, normalization=normalization)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_gif(path, num_frames, *, size=(48, 24)):
    """A red square that moves over a blue ground: no two frames are alike. `size` is width and height."""
    frames = []
    for t in range(num_frames):
        frame = Image.new("RGB", size, (0, 0, 90))
        left = (t + 14) % 40
        frame.paste((255, 40, 0), (left, 2, left + 6, 14))
        frames.append(frame)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0)
    return path


# --------------------------------------------------------------------------------------------------------------------
# What is offered


def test_all_tasks_are_offered_by_a_network_of_both_masks(app):
    abilities = app.find_abilities(tiny_pipeline())
    assert list(abilities) == list(app.TASKS)
    assert {task: can.given for task, can in abilities.items()} == {
        "predict": (1, 3),
        "reconstruct the past": (1, 3),
        "interpolate": (1, 3),
        "generate": (0, 0),
    }
    assert abilities["interpolate"].length[0] == 2 and abilities["predict"].length == (1, app.MAX_LENGTH)
    assert all(can.takes_guidance and can.steps == (1, app.MAX_STEPS) for can in abilities.values())


def test_what_a_network_was_not_trained_for_is_not_offered_and_told(app):
    pipe = tiny_pipeline(drop_past=0.0, num_future_frames=0)
    abilities = app.find_abilities(pipe)
    assert list(abilities) == ["predict"]
    assert abilities["predict"].given == (3, 3) and not abilities["predict"].takes_guidance
    assert "It cannot reconstruct the past or interpolate or generate." in app.describe(pipe, "mine", abilities)


@pytest.mark.slow
@pytest.mark.parametrize("row", PIPELINES, ids=lambda row: row.name)
def test_all_that_is_offered_can_be_made_by_every_kind_of_pipeline(app, row, tmp_path):
    pipe = row.make()
    abilities, clip = app.find_abilities(pipe), app.example_clips(pipe)[1]
    assert abilities
    assert app.describe(pipe, row.name, abilities).startswith(f"**{row.name}**: ")
    for task, can in abilities.items():
        for given in set(can.given):
            settings = {"task": task, "given": given, "length": can.default_length, "steps": max(2, can.steps[0])}
            result = app.sample(pipe, clip, **settings, futures=2, guidance=2.0 if can.takes_guidance else 1.0)
            path = tmp_path / f"{task} {given}.webp"
            result.save(path)
            with Image.open(path) as picture:
                assert (
                    picture.n_frames
                    == len(result.is_given)
                    == given_frames(app, pipe, task, given) + can.default_length
                )


def given_frames(app, pipe, task, given):
    return sum(app.num_given(pipe, task, given).values())


# --------------------------------------------------------------------------------------------------------------------
# Clips


def test_a_file_becomes_frames_of_the_model_and_a_line_says_how(app, tmp_path):
    clip, note = app.read_clip(tiny_pipeline(), write_gif(tmp_path / "red.gif", 9))
    assert clip.shape == (1, 9, 1, 16, 16) and 0 <= clip.min() < 0.1 and 0.2 < clip.max() <= 1
    assert "red.gif: 9 frames; 24x48 scaled and cut to 16x16; colour made grey" in note
    clip, note = app.read_clip(tiny_pipeline(channels=2), write_gif(tmp_path / "long.gif", app.CLIP_FRAMES + 3))
    assert clip.shape == (1, app.CLIP_FRAMES, 2, 16, 16) and torch.equal(clip[:, :, 0], clip[:, :, 1])
    assert f"the first {app.CLIP_FRAMES} of {app.CLIP_FRAMES + 3} frames" in note and "in all 2 channels" in note


def test_a_broken_file_is_named_without_where_it_lies(app, tmp_path):
    (tmp_path / "broken.gif").write_bytes(b"GIF89a, but no more")
    with pytest.raises(ValueError, match="broken.gif") as error:
        app.read_clip(tiny_pipeline(), tmp_path / "broken.gif")
    assert str(tmp_path) not in str(error.value)


def test_units_of_a_model_go_in_and_pictures_come_out(app):
    pipe = tiny_pipeline(channels=2, normalization=FrameNormalizer.from_range([200, -1], [300, 3]).to_config())
    clip = app.example_clips(pipe)[0]
    assert app.to_units(pipe, clip)[:, :, 0].max() > 250
    torch.testing.assert_close(pipe.normalizer.to_display(app.to_units(pipe, clip)), clip)
    result = app.sample(pipe, clip, task="predict", given=3, length=2, steps=2, futures=3)
    torch.testing.assert_close(result.columns["truth"], clip[:, :5, :1].expand(-1, -1, 3, -1, -1))
    made = torch.cat([result.columns[f"sample {i}"] for i in (1, 2, 3)])
    assert made[:, 3:].std() > 0.01  # neither all black nor all white: in the range of pictures
    assert 0 < float(re.search(r"Spread of the samples: \*\*([\d.]+)", result.numbers)[1]) < app.MOST_SPREAD


# --------------------------------------------------------------------------------------------------------------------
# Sampling


def test_columns_show_given_frames_truth_samples_and_where_these_differ(app):
    pipe, steps = tiny_pipeline(), []
    clip = app.example_clips(pipe)[0]
    settings = {"task": "predict", "given": 3, "length": 5, "steps": 4, "futures": 3, "seed": 1}
    result = app.sample(pipe, clip, **settings, on_step=lambda share, text: steps.append((share, text)))
    assert list(result.columns) == ["truth", "sample 1", "sample 2", "sample 3", "uncertainty"]
    assert result.is_given == [True] * 3 + [False] * 5
    rgb = clip.expand(-1, -1, 3, -1, -1)
    assert torch.equal(result.columns["truth"], rgb[:, :8])
    samples = torch.cat([result.columns[f"sample {i}"] for i in (1, 2, 3)])
    assert torch.equal(samples[:, :3], rgb[:, :3].expand(3, -1, -1, -1, -1))
    assert not result.columns["uncertainty"][:, :3].any()
    # Where the samples are furthest apart, the map is brightest.
    spread, heat = samples[:, 3:].std(dim=0).mean(dim=1), result.columns["uncertainty"][0, 3:].mean(dim=1)
    torch.testing.assert_close(heat, (3 * spread[:, None] / 0.5 - torch.arange(3)[:, None, None]).clamp(0, 1).mean(1))

    assert "12 calls of the network with 3 videos each" in result.numbers  # three blocks, the last not needed whole
    shares = [share for share, _ in steps]
    assert len(steps) == 12 and shares == sorted(shares) and shares[-1] == 1 and steps[0][1] == "block 1/3, step 1/4"
    videos = [*samples[:, 3:, :1].split(1), repeat_last_frame(clip[:, :3], 5)]
    psnr = [f"{float(psnr_of_mse(video_mse(video, clip[:, 3:8]))):.1f} dB" for video in videos]
    assert re.findall(r"[\d.]+ dB", result.numbers) == psnr
    again = app.sample(pipe, clip, **settings)
    assert torch.equal(again.columns["sample 3"], result.columns["sample 3"])


@pytest.mark.parametrize("task, is_given", [("predict", "ggg......"), ("reconstruct the past", "......ggg")])
def test_truth_ends_where_the_clip_does(app, task, is_given):
    pipe = tiny_pipeline()
    clip = app.example_clips(pipe)[0][:, :7]
    result = app.sample(pipe, clip, task=task, given=3, length=6, steps=2)
    truth = result.columns["truth"]
    assert list(result.columns) == ["truth", "sample 1"] and result.is_given == [x == "g" for x in is_given]
    known = slice(0, 7) if task == "predict" else slice(2, 9)
    assert torch.equal(truth[:, known, :1], clip)
    assert (truth[:, slice(7, 9) if task == "predict" else slice(0, 2)] == 0.5).all()
    assert "does not show 2 of the 6 frames" in result.numbers
    made = result.columns["sample 1"][:, 3:7, :1] if task == "predict" else result.columns["sample 1"][:, 2:6, :1]
    true = clip[:, 3:] if task == "predict" else clip[:, :4]
    assert f"| {float(psnr_of_mse(video_mse(made, true))):.1f} dB |" in result.numbers


def test_interpolation_needs_a_clip_that_reaches_both_ends(app):
    pipe = tiny_pipeline()
    clip = app.example_clips(pipe)[0][:, :9]
    result = app.sample(pipe, clip[:, :8], task="interpolate", given=3, length=2, steps=2)
    assert torch.equal(result.columns["truth"][:, :, :1], clip[:, :8])
    with pytest.raises(ValueError, match="The clip has 9 frames, and this asks for 10"):
        app.sample(pipe, clip, task="interpolate", given=3, length=4, steps=2)


# --------------------------------------------------------------------------------------------------------------------
# The page


@contextlib.contextmanager
def served(tmp_path, script=ROOT / "examples" / "app.py", **environment):
    """The demo as a process of its own, on a free port of this machine; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    local = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    local |= {
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "GRADIO_TEMP_DIR": str(tmp_path / "cache"),
    }
    local |= {"PYTHONPATH": str(ROOT)} | environment
    log = tmp_path / "app.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, str(script)], env={**os.environ, **local}, cwd=tmp_path, stdout=stream, stderr=stream
        )
    try:
        address, end = f"http://127.0.0.1:{port}/", time.monotonic() + 180
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            with contextlib.suppress(OSError), opener.open(address, timeout=10) as answer:
                page = answer.read().decode()
                break
            time.sleep(0.3)
        assert re.search(r'"analytics_enabled": ?false', page)
        yield address
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = os.environ.get("MCVD_BROWSER") or next(filter(None, map(shutil.which, names)), None)
    if path is None or importlib.util.find_spec("playwright") is None:
        missing = f"no browser ({', '.join(names)} or MCVD_BROWSER)" if path is None else "no playwright"
        (pytest.fail if IS_REQUIRED else pytest.skip)(f"{missing}: `make browser` installs what the demo's tests need")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, address, *, width=1280, height=900):
    """The page, which must complain of nothing and ask nobody else for anything."""
    page, troubles = browser.new_page(viewport={"width": width, "height": height}), []
    page.set_default_timeout(90_000)
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    own = (address, "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(own) else troubles.append(request.url))
    page.goto(address)
    page.get_by_role("button", name="Make videos").wait_for()
    yield page
    page.close()
    assert troubles == []


def make_videos(page, calls, *, shows=None):
    """Press the button, wait for so many calls of the network and another picture: (T, H, W, 3)."""
    image = page.locator("#video img")
    before = image.evaluate("x => x.src") if image.count() else ""
    page.get_by_role("button", name="Make videos").click()
    if shows is not None:
        page.get_by_text(shows).first.wait_for()
    page.locator("#numbers", has_text=f" {calls} calls of the network").wait_for()
    page.wait_for_function("x => (document.querySelector('#video img')?.src ?? '') != x", arg=before)
    fetch = """async x => { const blob = await (await fetch(x.src)).blob(), reader = new FileReader();
               await new Promise(done => { reader.onload = done; reader.readAsDataURL(blob); }); return reader.result; }"""
    with Image.open(io.BytesIO(base64.b64decode(image.evaluate(fetch).split(",")[1]))) as picture:
        frames = []
        for t in range(picture.n_frames):
            picture.seek(t)
            frames.append(np.asarray(picture.convert("RGB")))
    return np.stack(frames)


def column_of(app, frames, number, num_columns):
    """One column of the animation, as small as the model made it: (T, 16, 16), in [0, 1]."""
    scale = round(max(64, app.PICTURE_WIDTH // num_columns - 12) / 16)
    assert frames.shape[2] == 6 + num_columns * (16 * scale + 12)  # a gap and a border on either side
    left, top = 9 + number * (16 * scale + 12), frames.shape[1] - 9 - 16 * scale
    cells = frames[:, top : top + 16 * scale, left : left + 16 * scale, 0] / 255
    return torch.tensor(cells).unflatten(1, (16, scale)).unflatten(3, (16, scale)).mean(dim=(2, 4)).float()


def set_slider(page, label, value):
    box = page.get_by_label(f"number input for {label}")
    box.fill(str(value))
    box.press("Enter")


@pytest.mark.slow
def test_the_page_in_a_browser(app, browser, tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    with served(tmp_path, MCVD_MODEL=str(tmp_path / "model")) as address, opened(browser, address) as page:
        # Another clip, other numbers; sliders that do something are there.
        page.locator("#clips button.thumbnail-item").nth(1).click()
        set_slider(page, "Frames to make", 5)
        set_slider(page, "Futures (samples)", 2)
        page.get_by_label("range slider for Given frames").press("ArrowLeft")
        frames = make_videos(page, 12)
        page.screenshot(path=tmp_path / "predicted.png")
        assert len(frames) == 2 + 5
        clips = app.example_clips(pipe)
        truth = column_of(app, frames, 0, 4)
        assert (truth - clips[1][0, :7, 0]).abs().mean() < 0.02 < (truth - clips[0][0, :7, 0]).abs().mean()
        given = column_of(app, frames, 1, 4)
        assert (given[:2] - clips[1][0, :2, 0]).abs().mean() < 0.02 < (given[2:] - clips[1][0, 2:7, 0]).abs().mean()
        assert page.locator("#sheet img").evaluate("x => x.naturalWidth") > 7 * 64
        assert "last frame repeated" in page.locator("#numbers").inner_text()

        # What does nothing for a task is not there.
        page.get_by_label("generate").check()
        page.locator("#clips").wait_for(state="hidden")
        assert not page.get_by_label("number input for Given frames").is_visible()
        set_slider(page, "Frames to make", 2)  # one block, which nothing guides
        page.get_by_label("number input for Guidance (1: none)").wait_for(state="hidden")
        frames = make_videos(page, 4)
        assert len(frames) == 2 and frames.shape[2] == 6 + 3 * (16 * round((app.PICTURE_WIDTH // 3 - 12) / 16) + 12)
        page.get_by_label("predict").check()
        page.locator("#clips").wait_for()

        # A clip of one's own, dropped.
        own = write_gif(tmp_path / "own.gif", 6)
        drop(page, own)
        page.locator("#note", has_text="own.gif: 6 frames; 24x48 scaled and cut").wait_for()
        assert page.locator("#clips button.thumbnail-item").count() == len(clips) + 1
        set_slider(page, "Frames to make", 3)
        frames = make_videos(page, 8)
        truth = column_of(app, frames, 0, 4)
        assert (truth - app.read_clip(pipe, own)[0][0, :6, 0]).abs().mean() < 0.02

        # What cannot be done is told in the page.
        page.get_by_label("interpolate").check()
        page.get_by_label("number input for Given frames a side").wait_for()
        set_slider(page, "Frames to make", 9)
        page.get_by_role("button", name="Make videos").click()
        page.get_by_text("The clip has 6 frames, and this asks for 15").wait_for()
        page.screenshot(path=tmp_path / "too_short.png")
        page.get_by_label("Remove this file").or_(page.get_by_label("Clear")).first.click()
        page.locator("#note", has_text="Moving digits").wait_for()
        (tmp_path / "broken.gif").write_bytes(b"GIF89a, but no more")
        drop(page, tmp_path / "broken.gif")
        told = page.get_by_text("broken.gif").filter(has_text=re.compile("must|cannot|can not|identify|read"))
        told.first.wait_for()
        page.screenshot(path=tmp_path / "broken.png")
        assert str(tmp_path) not in page.locator("body").inner_text()


def drop(page, path):
    """A file from the desktop onto the field for it."""
    make = """content => { const data = new DataTransfer(), bytes = Uint8Array.from(atob(content[1]), x => x.charCodeAt(0));
              data.items.add(new File([bytes], content[0], {type: 'image/gif'})); return data; }"""
    data = page.evaluate_handle(make, [path.name, base64.b64encode(path.read_bytes()).decode()])
    page.locator("#file button").first.dispatch_event("drop", {"dataTransfer": data})


def screenshot_of_made_frames(page):
    """The page at a moment of the animation when frames are shown that were made: with orange borders."""
    for _ in range(40):
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        box = page.locator("#video img").bounding_box()
        x, y, width, height = (int(box[name]) for name in ("x", "y", "width", "height"))
        colors = np.asarray(picture.crop((x, y, x + width, y + height))).astype(int)
        if (abs(colors - MADE_COLOR).max(axis=-1) < 30).sum() > 3 * height:
            return picture
        page.wait_for_timeout(150)
    pytest.fail("the animation never shows a frame that was made")


@pytest.mark.slow
@pytest.mark.skipif(not SHIPPED.is_dir(), reason="checkpoints/moving-digits is not in this checkout")
def test_the_shipped_model_in_a_page_that_fits_a_screen_and_a_phone(browser, tmp_path):
    with served(tmp_path) as address:
        with opened(browser, address) as page:
            frames = make_videos(page, 30, shows=re.compile(r"block [12]/2, step \d+/15"))
            assert len(frames) == 15
            picture = screenshot_of_made_frames(page)
            picture.quantize(dither=Image.Dither.NONE).save(
                os.environ.get("MCVD_SCREENSHOT") or tmp_path / "app.png", optimize=True
            )
            for name in ("#video img", "#sheet img", "#numbers"):
                box = page.locator(name).bounding_box()
                assert box["y"] + box["height"] <= 900 and box["x"] + box["width"] <= 1280, name
        with opened(browser, address, width=390, height=844) as page:
            make_videos(page, 30)
            page.screenshot(path=tmp_path / "phone.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390


# --------------------------------------------------------------------------------------------------------------------
# A Space


def test_a_space_needs_what_the_package_needs(app):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = setup["options"]["install_requires"] + setup["options.extras_require"]["video"]
    assert (ROOT / "examples" / "space" / "requirements.txt").read_text().split() == needed.split()
    front = (ROOT / "examples" / "space" / "README.md").read_text().split("---")[1]
    version = re.search(r"sdk_version: (\d+)", front)[1]
    assert "sdk: gradio" in front and "app_file: app.py" in front
    assert f"gradio>={version}" in setup["options.extras_require"]["demo"]


@pytest.mark.slow
def test_the_folder_of_a_space_as_the_docs_make_it_is_a_demo(tmp_path):
    text = (ROOT / "docs" / "app.md").read_text()
    commands = re.search(r"```bash\n(mkdir .*?)^```", text, re.S | re.M)[1]
    (tmp_path / "checkout" / "checkpoints").mkdir(parents=True)
    for name in ("examples", "mcvd_diffusers"):
        shutil.copytree(ROOT / name, tmp_path / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    tiny_pipeline().save_pretrained(tmp_path / "checkout" / "checkpoints" / "moving-digits")
    subprocess.run(["bash", "-euc", commands], cwd=tmp_path / "checkout", check=True)
    space = tmp_path / "checkout" / "space"
    (tmp_path / "checkout" / "checkpoints").rename(tmp_path / "elsewhere")  # it has its own
    with served(tmp_path, space / "app.py", PYTHONPATH="") as address:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(address, timeout=60) as answer:
            assert "16x16" in answer.read().decode()
