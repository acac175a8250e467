"""Pushing to the Hub and loading from it: by the real client, in processes of their own, over a Hub on this machine."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from hub_server import HubServer


ROOT = Path(__file__).parents[1]
TOKENS = {"hf_aliceSecret": "alice", "hf_bobSecret": "bob"}
READ_TOKENS = {"hf_readerSecret": "alice"}
PRELUDE = """
import logging, os, re, sys, time
from pathlib import Path
import huggingface_hub as hf
import torch
torch.set_num_threads(1)
import diffusers
import mcvd_diffusers
from contract_rows import PIPELINES, shaken
from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel
from mcvd_diffusers.publishing import PushError

here, slept = Path(sys.argv[1]), []
time.sleep, sleep = lambda seconds: (slept.append(seconds), sleep(0.001)), time.sleep  # backoff takes no time, and is seen
row = PIPELINES[0]


def sample(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(**row.inputs(1), generator=torch.Generator().manual_seed(5)).frames


def refused(error_class, function, *arguments, **settings):
    began = time.monotonic()
    try:
        function(*arguments, **settings)
    except error_class as error:
        assert type(error) is error_class and "\\n" not in str(error), repr(error)
        assert "Secret" not in str(error)
        print(f"refused: {error}")
        return str(error)
    raise AssertionError("was not refused")
"""
PIPELINE_FILES = {
    "README.md",
    "model_card.json",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
}
TINY_RUN = {
    "resolution": 16,
    "num_past_frames": 2,
    "num_frames": 2,
    "num_future_frames": 1,
    "block_out_channels": "8 8",
    "train_batch_size": 2,
    "num_train_clips": 8,
    "max_train_steps": 2,
    "lr_warmup_steps": 0,
    "checkpointing_steps": 1,
    "num_validation_videos": 1,
    "validation_inference_steps": 2,
}


@pytest.fixture
def hub():
    with HubServer(tokens=TOKENS, read_tokens=READ_TOKENS) as server:
        yield server


def environment(hub, tmp_path, home, token):
    variables = hub.environment(tmp_path / home, token=token)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return variables | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def start(hub, tmp_path, *command, home="home", token="hf_aliceSecret", **variables):
    """Run a command to its end. The same `home` is the same cache."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment(hub, tmp_path, home, token) | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    for secret in (*TOKENS, *READ_TOKENS):
        assert secret not in done.stdout + done.stderr
    return done


def run(hub, tmp_path, script, **settings):
    """Run a script that must not fail; gives what it writes."""
    done = start(hub, tmp_path, "-c", PRELUDE + textwrap.dedent(script), tmp_path, **settings)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout + done.stderr


def command(hub, tmp_path, *words, **settings):
    return start(hub, tmp_path, "-m", "mcvd_diffusers.cli", *words, **settings)


def run_words():
    return [word for name, value in TINY_RUN.items() for word in (f"--{name}", *str(value).split())]


def train(hub, tmp_path, *more, output_dir="model", **settings):
    """`train_mcvd.py` in a process; the waits between attempts take no time."""
    quick = "import runpy, sys, time; sleep = time.sleep; time.sleep = lambda seconds: sleep(min(seconds, 0.01))"
    code = f"{quick}; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [*run_words(), "--output_dir", output_dir, "--push_to_hub", "True", *more]
    return start(hub, tmp_path, "-c", code, ROOT / "train_mcvd.py", *words, **settings)


def uploaded(hub, repo_id="alice/model", revision="main"):
    files = hub.files(repo_id, revision)
    files.pop(".gitattributes")
    return files


def count(hub, route, status=200):
    return sum(request.route == route and request.status == status for request in hub.requests)


def num_pushes(hub, repo_id="alice/model", revision="main"):
    return len(hub.commits(repo_id, revision)) - 1  # the first one makes the repository


# --------------------------------------------------------------------------------------------------------------------
# Pipelines


@pytest.mark.slow
def test_a_pipeline_comes_back_from_the_hub_in_another_process_and_makes_the_same_video(hub, tmp_path):
    push = """
        pipe, name = row.make(), "regular" if os.environ.get("HF_HUB_DISABLE_XET") is None else "lfs"
        torch.save(sample(pipe), here / "video.pt")
        url = pipe.push_to_hub(name, commit_message="A model")
        assert url == f"{os.environ['HF_ENDPOINT']}/alice/{name}/commit/{hf.model_info(f'alice/{name}').sha}", url
        assert pipe.push_to_hub(f"alice/{name}") == url  # nothing new, no commit
    """
    for mode in ("regular", "lfs"):
        hub.upload_mode = mode
        run(hub, tmp_path, push, home=mode)
        files = uploaded(hub, f"alice/{mode}")
        assert set(files) == PIPELINE_FILES
        assert num_pushes(hub, f"alice/{mode}") == 1 and hub.commits(f"alice/{mode}")[0].title == "A model"
        assert count(hub, "lfs_upload") == (mode == "lfs")
        card = files["README.md"].decode()
        assert "More Information Needed" not in card and f'MCVDPipeline.from_pretrained("alice/{mode}")' in card
        assert not any(secret in repr((hub.requests, files)) for secret in TOKENS)
    load = """
        video = torch.load(here / "video.pt")
        for name in ("alice/regular", "alice/lfs"):
            assert torch.equal(sample(MCVDPipeline.from_pretrained(name)), video)
            assert torch.equal(sample(diffusers.DiffusionPipeline.from_pretrained(name)), video)
    """
    run(hub, tmp_path, load, home="cold", token=None)


@pytest.mark.slow
def test_saving_can_push_as_well_and_networks_can_be_pushed_alone_with_a_card_that_is_no_form(hub, tmp_path):
    push = """
        pipe = row.make()
        pipe.save_pretrained(here / "saved", push_to_hub=True, repo_id="model")
        pipe.save_pretrained(str(here / "named"), push_to_hub=True, private=True, commit_message="saved")
        pipe.unet.push_to_hub("network", commit_message="alone")
        pipe.unet.push_to_hub("alice/network", commit_message="again")
        pipe.unet.push_to_hub("alice/network", variant="half", commit_message="a variant")
        pipe.unet.save_pretrained(here / "saved_network", push_to_hub=True, max_shard_size="100KB")
        pipe.unet.push_to_hub("alice/saved_network", commit_message="one file")
        hf.upload_file(path_or_fileobj=b"Mine.", path_in_repo="README.md", repo_id="alice/saved_network")
        pipe.unet.push_to_hub("alice/saved_network", subfolder="inside", commit_message="inside")
        shaken(pipe.unet).push_to_hub("alice/saved_network", commit_message="new")
        for function in (pipe.push_to_hub, pipe.unet.push_to_hub):
            assert "pickled" in refused(ValueError, function, "alice/pickles", safe_serialization=False)
        refused(ValueError, pipe.save_pretrained, here / "no", safe_serialization=False, push_to_hub=True)
    """
    run(hub, tmp_path, push)
    assert set(uploaded(hub)) == PIPELINE_FILES and 'from_pretrained("alice/model")' in str(uploaded(hub)["README.md"])
    assert not (tmp_path / "no").exists() and ("model", "alice/pickles") not in hub.repositories
    assert hub.repository("alice/named").private and hub.commits("alice/named")[0].title == "saved"
    network = uploaded(hub, "alice/network")
    weights = "diffusion_pytorch_model"
    assert set(network) == {"README.md", "config.json", f"{weights}.safetensors", f"{weights}.half.safetensors"}
    assert [commit.title for commit in hub.commits("alice/network")] == ["a variant", "alone", "initial commit"]
    card = network["README.md"].decode()
    assert 'MCVDUNet2DModel.from_pretrained("alice/network"' in card and "bibtex" in card and "2 past" in card
    assert "More Information" not in card and "TODO" not in card and "Nothing is stated" in card
    titles = [commit.title for commit in hub.commits("alice/saved_network")]
    assert titles[0] == "new" and titles[1] == "inside" and titles[3] == "one file"
    again = uploaded(hub, "alice/saved_network")
    inside = {"inside/config.json", f"inside/{weights}.safetensors"}
    assert set(again) == {"README.md", "config.json", f"{weights}.safetensors", *inside}
    assert again["README.md"] == b"Mine."
    load = """
        pipe, other = row.make(), None
        for settings in ({}, {"variant": "half"}):
            other = MCVDUNet2DModel.from_pretrained("alice/network", **settings)
            assert all(torch.equal(x, other.state_dict()[name]) for name, x in pipe.unet.state_dict().items())
        MCVDUNet2DModel.from_pretrained("alice/saved_network", subfolder="inside")
        for name in ("alice/network", "alice/model"):
            card = Path(hf.hf_hub_download(name, "README.md")).read_text()
            exec(re.search(r"```python\\n(.*?)```", card, re.DOTALL)[1])  # the example, as it stands
    """
    run(hub, tmp_path, load, home="cold", token=None)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_shards_and_variants_come_back_and_what_a_push_replaces_goes_with_the_same_commit(hub, tmp_path, mode):
    hub.upload_mode = mode
    push = """
        pipe = row.make()
        torch.save(sample(pipe), here / "video.pt")
        pipe.push_to_hub("alice/model", max_shard_size="100KB", commit_message="shards")
        hf.upload_folder(repo_id="alice/model", folder_path=here / "others")
        pipe.push_to_hub("alice/shards", max_shard_size="100KB")
        pipe.push_to_hub("alice/shards", variant="half", max_shard_size="100KB", commit_message="a variant")
        pipe.push_to_hub("alice/variant", variant="ema")
    """
    others = {"notes.md": "mine", "unet/readme.txt": "mine", "data/table.json": "{}", "evaluation/mine.json": "{}"}
    for name, text in others.items():
        (tmp_path / "others" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "others" / name).write_text(text)
    run(hub, tmp_path, push)
    before = set(uploaded(hub))
    assert len([name for name in before if "-of-" in name]) > 1 and set(others) < before
    assert num_pushes(hub, "alice/shards") == 2
    load = """
        video = torch.load(here / "video.pt")
        assert torch.equal(sample(MCVDPipeline.from_pretrained("alice/model")), video)
        assert torch.equal(sample(MCVDPipeline.from_pretrained("alice/shards")), video)
        assert torch.equal(sample(MCVDPipeline.from_pretrained("alice/shards", variant="half")), video)
        assert torch.equal(sample(MCVDPipeline.from_pretrained("alice/variant", variant="ema")), video)
    """
    run(hub, tmp_path, load, home="cold", token=None)
    push = """
        pipe = row.make()
        shaken(pipe.unet)
        torch.save(sample(pipe), here / "video.pt")
        pipe.push_to_hub("alice/model", commit_message="one file")
    """
    run(hub, tmp_path, push)
    assert set(uploaded(hub)) == PIPELINE_FILES | set(others)
    assert hub.commits("alice/model")[0].title == "one file" and num_pushes(hub) == 3
    load = """
        assert torch.equal(sample(MCVDPipeline.from_pretrained("alice/model")), torch.load(here / "video.pt"))
    """
    run(hub, tmp_path, load, home="colder", token=None)
    verify = """
        from mcvd_diffusers.cli import main

        for name in ("alice/model", "alice/shards", "alice/variant"):
            assert main(["verify", name, "--skip_example"]) == 0
    """
    run(hub, tmp_path, verify, home="colder", token=None)


@pytest.mark.slow
def test_a_context_encoder_goes_with_its_pipeline_and_goes_when_another_comes(hub, tmp_path):
    push = """
        from context_pipelines import context_pipeline, move
        from mcvd_diffusers.publishing import push_folder

        def video(pipe):
            pipe.set_progress_bar_config(disable=True)
            past = torch.rand(1, 5, 1, 8, 8, generator=torch.Generator().manual_seed(3))
            settings = {"num_inference_steps": 2, "output_type": "pt", "generator": torch.Generator().manual_seed(5)}
            return pipe(past_frames=past, num_frames=3, **settings).frames
    """
    first = """
        for kind in ("lgcvd", "rvd"):
            pipe = context_pipeline(kind)
            torch.save(video(pipe), here / f"{kind}.pt")
            url = pipe.push_to_hub(f"alice/{kind}", max_shard_size="20KB")
            assert pipe.push_to_hub(f"alice/{kind}", max_shard_size="20KB") == url
            move(pipe.context_encoder)
            pipe.push_to_hub(f"alice/{kind}", variant="half")
            torch.save(video(pipe), here / f"{kind}.half.pt")
        hf.upload_file(path_or_fileobj=b"Mine.", path_in_repo="context_encoder/notes.txt", repo_id="alice/rvd")
        pipe = context_pipeline("lgcvd")
        pipe.context_encoder.push_to_hub("alice/encoder")
        pipe.unet.push_to_hub("alice/denoiser")
    """
    run(hub, tmp_path, textwrap.dedent(push) + textwrap.dedent(first))
    encoder = "context_encoder/diffusion_pytorch_model"
    for kind in ("lgcvd", "rvd"):
        files = set(uploaded(hub, f"alice/{kind}"))
        assert num_pushes(hub, f"alice/{kind}") == 2 + (kind == "rvd")
        assert {
            "context_encoder/config.json",
            f"{encoder}.safetensors.index.json",
            f"{encoder}.half.safetensors",
        } < files
        card = uploaded(hub, f"alice/{kind}")["README.md"].decode()
        assert "Tensors of half" in card and "Tensors of no variant" in card
    for name, words in {
        "encoder": (
            "context_encoder = LGCVDContextEncoder",
            "needs the network that it was trained with",
            "yang2023video",
        ),
        "denoiser": ("unet = LGCVDUNet2DModel", "and the context encoder that it was trained with", "yang2023video"),
    }.items():
        card = uploaded(hub, f"alice/{name}")["README.md"].decode()
        assert all(x in card for x in words), card
    load = """
        from mcvd_diffusers.cli import main

        for kind in ("lgcvd", "rvd"):
            name = f"alice/{kind}"
            for made, settings in (("", {}), (".half", {"variant": "half"})):
                expected = torch.load(here / f"{kind}{made}.pt")
                assert torch.equal(video(MCVDPipeline.from_pretrained(name, **settings)), expected)
                assert torch.equal(video(diffusers.DiffusionPipeline.from_pretrained(name, **settings)), expected)
            assert main(["verify", name, "--skip_example"]) == 0
        for name in ("alice/encoder", "alice/denoiser"):
            card = Path(hf.hf_hub_download(name, "README.md")).read_text()
            exec(re.search(r"```python\\n(.*?)```", card, re.DOTALL)[1])
    """
    run(hub, tmp_path, textwrap.dedent(push) + textwrap.dedent(load), home="cold", token=None)
    again = """
        pipe = context_pipeline("lgcvd")
        move(pipe.context_encoder)
        pipe.push_to_hub("alice/lgcvd")  # the same networks with other weights
        row.make().push_to_hub("alice/rvd")
        context_pipeline("rvd").push_to_hub("alice/lgcvd", variant="half", commit_message="another network")
    """
    said = run(hub, tmp_path, textwrap.dedent(push) + textwrap.dedent(again))
    assert "The network in alice/lgcvd is another one" in said
    assert set(uploaded(hub, "alice/rvd")) == PIPELINE_FILES | {"context_encoder/notes.txt"}
    files = set(uploaded(hub, "alice/lgcvd"))
    assert {name for name in files if name.endswith(".safetensors")} == {
        f"{component}/diffusion_pytorch_model.half.safetensors" for component in ("unet", "context_encoder")
    }


@pytest.mark.slow
def test_a_hostile_network_on_the_hub_is_refused_by_the_files_name(hub, tmp_path):
    out = run(
        hub,
        tmp_path,
        """
        pipe = row.make()
        pipe.unet.save_pretrained(here / "whole")
        pipe.unet.save_pretrained(here / "sharded", max_shard_size="10KB")
        api = hf.HfApi()
        for number, (kind, name, change) in enumerate([
            ("sharded", "diffusion_pytorch_model.safetensors.index.json", lambda old: b'{"a": 1}'),
            ("sharded", "diffusion_pytorch_model.safetensors.index.json", lambda old: b"["),
            ("sharded", "diffusion_pytorch_model.safetensors.index.json", lambda old: old.replace(b"model-00001", b"../1")),
            ("sharded", "config.json", lambda old: old.replace(b'"drop_past": 0.5', b'"drop_past": 0.4')),
            ("whole", "config.json", lambda old: old.replace(b"{", b'{"dropout": 0.5,', 1)),
            ("whole", "config.json", lambda old: old.replace(b'"in_channels": ', b'"in_channels": 99')),
            ("whole", "diffusion_pytorch_model.safetensors", lambda old: old[:-9] + bytes([old[-9] ^ 1]) + old[-8:]),
        ]):
            path = here / kind / name
            old = path.read_bytes()
            path.write_bytes(change(old))
            assert path.read_bytes() != old
            repo_id = api.create_repo(f"hostile{number}").repo_id
            api.upload_folder(repo_id=repo_id, folder_path=here / kind)
            path.write_bytes(old)
            try:
                MCVDUNet2DModel.from_pretrained(repo_id)
            except (ValueError, OSError) as error:
                assert name in str(error), repr(error)
                print(error)
            else:
                raise AssertionError(f"{name} was not refused")
        assert len(list((here / "sharded").glob("*.safetensors"))) > 1
        api.upload_folder(repo_id=api.create_repo("good").repo_id, folder_path=here / "sharded")
        loaded = MCVDUNet2DModel.from_pretrained("alice/good").state_dict()
        assert all(torch.equal(loaded[name], x) for name, x in pipe.unet.state_dict().items())
        """,
    )
    assert "twice" in out and "is not the config that" in out


@pytest.mark.slow
def test_private_is_private_and_branches_tags_and_pull_requests_hold_pipelines(hub, tmp_path):
    hub.add_repository("alice/public")
    push = """
        pipe = row.make()
        pipe.push_to_hub("alice/secret", private=True)
        pipe.push_to_hub("alice/secret", private=True, commit_message="again")
        assert "public" in refused(ValueError, pipe.push_to_hub, "alice/public", private=True)
        saving = dict(push_to_hub=True, repo_id="alice/public", private=True)
        assert "public" in refused(ValueError, pipe.save_pretrained, here / "saved", **saving)

        torch.save(sample(pipe), here / "main.pt")
        pipe.push_to_hub("alice/model")
        hf.create_tag("alice/model", tag="v1")
        shaken(pipe.unet)
        torch.save(sample(pipe), here / "new.pt")
        url = pipe.push_to_hub("alice/model", create_pr=True, commit_message="Better")
        assert url.endswith("/alice/model/discussions/1"), url
        assert "leave one" in refused(ValueError, pipe.push_to_hub, "alice/model", create_pr=True, revision="dev")
        pipe.push_to_hub("alice/model", revision="dev")
        shaken(pipe.unet)
        torch.save(sample(pipe), here / "newer.pt")
        pipe.push_to_hub("alice/model", create_pr=True, token="hf_bobSecret")
        pipe.push_to_hub("alice/model", revision="refs/pr/1", commit_message="More")
        assert "token" in refused(ValueError, pipe.push_to_hub, "alice/model", token="hf_bobSecret")
    """
    run(hub, tmp_path, push)
    assert hub.repository("alice/secret").private and not hub.repository("alice/public").private
    assert num_pushes(hub, "alice/secret") == 1 and num_pushes(hub, "alice/public") == 0
    assert not (tmp_path / "saved").exists()
    refs = hub.repository("alice/model").refs
    assert set(refs) == {"refs/heads/main", "refs/heads/dev", "refs/tags/v1", "refs/pr/1", "refs/pr/2"}
    counts = [num_pushes(hub, revision=name) for name in ("main", "dev", "v1", "refs/pr/1", "refs/pr/2")]
    assert counts == [1, 2, 1, 3, 2] and hub.repository("alice/model").discussions[2].author == "bob"
    load = """
        def same(name, **settings):
            return torch.equal(sample(MCVDPipeline.from_pretrained("alice/model", **settings)), torch.load(here / name))

        assert same("main.pt") and same("main.pt", revision="v1") and same("new.pt", revision="dev")
        assert same("newer.pt", revision="refs/pr/1") and same("newer.pt", revision="refs/pr/2")
        try:
            MCVDPipeline.from_pretrained("alice/secret")
        except OSError as error:
            assert "alice/secret" in str(error)
        else:
            raise AssertionError("somebody else read it")
        MCVDPipeline.from_pretrained("alice/secret", token="hf_aliceSecret")
    """
    run(hub, tmp_path, load, home="cold", token="hf_bobSecret")


MAKE_RUN = """
    import train_mcvd
    from mcvd_diffusers.cli import main

    train_mcvd.main(train_mcvd.parse_args(sys.argv[2:]))
    for name, options in (("raw", ["--variant", "raw"]), ("ema", ["--variant", "ema"])):
        words = ["evaluate", "model", "--protocol", str(here / f"{name}.yaml"), "--output", name, *options]
        assert main([*words, "--num_inference_steps", "2"]) == 0
    assert main(["card", "model", "--evaluation", "raw", "ema", "--license", "mit"]) == 0
"""


@pytest.fixture(scope="module")
def evaluated_run(tmp_path_factory):
    """A tiny run with its card, samples and evaluations of both sets of weights."""
    place = tmp_path_factory.mktemp("run")
    digits = {"source": "sklearn", "num_digits": 1, "digit_size": 8, "max_speed": 2, "num_images": 8}
    counts = {"num_past_frames": 2, "num_frames": 2, "num_channels": 1, "num_clips": 4, "samples_per_clip": 2}
    words = {"version": 1, "title": "digits", "source": "here", "task": "prediction", "clip_choice": "random"}
    measured = {"best_of": "each_metric", "metrics": ["mse"], "moving_digits": digits, "frame_size": [16, 16]}
    for name in ("raw", "ema"):
        (place / f"{name}.yaml").write_text(json.dumps({"name": name, **words, **counts, **measured}))
    with HubServer(TOKENS) as hub:
        words = [*run_words(), "--output_dir", "model", "--report_to", "none"]
        done = start(hub, place, "-c", PRELUDE + textwrap.dedent(MAKE_RUN), place, *words, token=None)
    assert done.returncode == 0, done.stderr + done.stdout
    return place / "model"


@pytest.mark.slow
def test_what_was_loaded_and_is_pushed_again_keeps_its_card_samples_and_evaluations(hub, tmp_path, evaluated_run):
    facts = json.loads((evaluated_run / "model_card.json").read_text())
    push = """
        run_folder = Path(sys.argv[2])
        pipe = MCVDPipeline.from_pretrained(run_folder, variant="ema")
        pipe.push_to_hub("alice/average")
        MCVDPipeline.from_pretrained(run_folder).push_to_hub("alice/raw")
        hf.create_tag("alice/average", tag="v1")
        pipe.push_to_hub("alice/half", variant="fp16")
        shaken(pipe.unet)
        pipe.push_to_hub("alice/changed")
        pipe.push_to_hub("alice/average")

        again = MCVDPipeline.from_pretrained("alice/average", revision="v1")
        again.push_to_hub("alice/again")
        again.save_pretrained(here / "saved", push_to_hub=True, repo_id="alice/saved")
        shaken(again.unet)
        again.push_to_hub("alice/changed_again")
    """
    run(hub, tmp_path, push.replace("sys.argv[2]", repr(str(evaluated_run))))
    samples = set(facts["samples"])
    assert samples

    def evaluations(files):
        return {name.split("/")[1] for name in files if name.startswith("evaluation/")}

    for name in ("average", "raw", "half", "again", "saved", "changed", "changed_again"):
        files = uploaded(hub, f"alice/{name}", revision="v1" if name == "average" else "main")
        card, said = files["README.md"].decode(), json.loads(files["model_card.json"])
        is_same = not name.startswith("changed")
        assert ("All settings" in card and "mit" in card) == is_same == (said["training"] == facts["training"])
        assert f'from_pretrained("alice/{name}"' in card and "There are two sets" not in card
        shown = set() if not is_same or name == "raw" else samples
        assert {each for each in files if each.startswith("samples/")} == shown == set(said["samples"])
        wanted = {"raw": {"raw-v1"}}.get(name, {"ema-v1"}) if is_same else set()
        assert {re.sub("(-ema)?-2-steps-.*", "", each) for each in evaluations(files)} == wanted, (
            name,
            evaluations(files),
        )
        assert str(tmp_path) not in str(files) and str(evaluated_run) not in str(files)
    files = uploaded(hub, "alice/average")
    assert set(files) == PIPELINE_FILES  # what other weights showed is gone
    verify = """
        from mcvd_diffusers.cli import main

        for name in ("again", "saved", "raw", "half"):
            assert main(["verify", f"alice/{name}", "--skip_example"]) == 0
    """
    run(hub, tmp_path, verify, home="cold", token=None)


@pytest.mark.slow
def test_a_variant_joins_the_model_that_is_there_and_its_card_goes_on(hub, tmp_path, evaluated_run):
    push = f"""
        from mcvd_diffusers.publishing import push_folder

        push_folder({str(evaluated_run)!r}, "alice/model")
        pipe = MCVDPipeline.from_pretrained("alice/model", torch_dtype=torch.float16)
        pipe.push_to_hub("alice/model", variant="fp16")
        hf.upload_file(path_or_fileobj=b"Mine.", path_in_repo="README.md", repo_id="alice/model")
        push_folder({str(evaluated_run)!r}, "alice/model")
    """
    text = run(hub, tmp_path, push)
    assert text.count("written by hand") == 1
    last, by_hand, joined, first = [commit.files for commit in hub.commits("alice/model")[:4]]
    assert set(joined) - set(first) == {"unet/diffusion_pytorch_model.fp16.safetensors"}
    assert b"fp16" in joined["README.md"].content and b"All settings" in joined["README.md"].content
    assert last["README.md"].content == first["README.md"].content and set(last) == set(first)
    commit = hub.commits("alice/model")[2].sha
    done = command(hub, tmp_path, "verify", "alice/model", "--revision", commit, home="cold", token=None)
    assert done.returncode == 0, done.stdout + done.stderr


# --------------------------------------------------------------------------------------------------------------------
# What goes wrong


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_a_push_is_repeated_until_the_hub_answers_and_makes_one_commit(hub, tmp_path, mode):
    hub.upload_mode = mode
    faults = [("create_repo", 503), ("create_repo", "close"), ("create_repo", "lose"), ("preupload", 503)]
    faults += [
        ("preupload", "close"),
        ("repo_info", "truncate"),
        ("commit", "close"),
        ("commit", 503),
        ("commit", 429),
    ]
    faults += [("commit", "lose"), ("create_branch", 503)]
    if mode == "lfs":
        faults += [("lfs_batch", 503), ("lfs_upload", "close"), ("lfs_verify", 503)]
        hub.fail_next("lfs_upload", 503, times=8)  # more than the client itself tries
    for route, fault in faults:
        hub.fail_next(route, fault)
    push = """
        pipe = row.make()
        torch.save(sample(pipe), here / "video.pt")
        pipe.push_to_hub("alice/model", revision="dev")
        assert {1, 2, 4} <= set(slept), slept
        pipe.push_to_hub("alice/model")
    """
    text = run(hub, tmp_path, push)
    assert "again in 2 s" in text
    assert num_pushes(hub, revision="dev") == 1 and num_pushes(hub) == 1
    assert not any(hub._faults.values()), "a fault that did not happen"
    load = """
        pipe = MCVDPipeline.from_pretrained("alice/model", revision="dev")
        assert torch.equal(sample(pipe), torch.load(here / "video.pt"))
    """
    run(hub, tmp_path, load, home="cold", token=None)


@pytest.mark.slow
def test_what_cannot_be_pushed_is_told_in_one_line_and_without_repetitions_where_they_are_no_use(hub, tmp_path):
    hub.add_repository("bob/theirs")
    hub.add_repository("alice/mine")
    script = """
        pipe = row.make()
        push = pipe.push_to_hub
        for name in ("alice/model/more", "a b", "-name", "x" * 200, "a--b"):
            assert name in refused(ValueError, push, name)
        assert "right" in refused(ValueError, push, "bob/model")
        assert "may not write" in refused(ValueError, push, "bob/theirs")
        assert "may only read" in refused(ValueError, push, "alice/mine", token="hf_readerSecret")
        assert "write" in refused(ValueError, push, "alice/new", token="hf_readerSecret")
        assert "does not know this token" in refused(ValueError, push, "alice/mine", token="hf_wrongSecret")
        for token in ("hf_alice Secret", "hf_alice\\nSecret", "hf_aliceSecret\\u00e4"):
            assert "again" in refused(ValueError, push, "alice/mine", token=token)
        assert not slept, slept
        print("UP")
    """
    text = run(hub, tmp_path, script)
    assert "UP" in text and "again in" not in text and num_pushes(hub, "alice/mine") == 0
    script = """
        from mcvd_diffusers.publishing import check_repository, push_folder

        row.make().save_pretrained(here / "saved")
        assert "There is no token" in refused(ValueError, push_folder, here / "saved", "alice/mine")
        assert "holds no pipeline" in refused(mcvd_diffusers.model_card.CardError, push_folder, here, "alice/mine")
    """
    run(hub, tmp_path, script, token=None)
    offline = {"HF_HUB_OFFLINE": "1"}
    with HubServer(TOKENS) as closed:
        pass
    for server, more, words in ((hub, offline, "HF_HUB_OFFLINE"), (closed, {}, "did not answer")):
        done = command(server, tmp_path, "push", "saved", "alice/mine", **more)
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith("mcvd-diffusers push: ") and words in last and "Traceback" not in done.stderr
        if more:
            assert "again in" not in done.stderr
        if server is closed:
            assert done.stderr.count("again in") == 3  # seven seconds
    hub.fail_next("commit", 400)
    script = """
        message = refused(PushError, row.make().push_to_hub, "alice/mine")
        assert "Injected by the test" in message and "refuses" in message and not slept, message
        assert "`revision`" in refused(ValueError, row.make().push_to_hub, "alice/mine", revision=" ")
    """
    run(hub, tmp_path, script)
    hub.fail_next("commit", 503, 99)
    script = """
        message = refused(PushError, row.make().push_to_hub, "alice/mine")
        assert "alice/mine" in message and "503" in message
        assert [x for x in slept if x in (1, 2, 4, 8, 16, 32)] == [1, 2, 4, 8, 16, 32], slept
    """
    run(hub, tmp_path, script)
    assert num_pushes(hub, "alice/mine") == 0


# --------------------------------------------------------------------------------------------------------------------
# Commands


@pytest.mark.slow
def test_a_training_pushes_its_pipeline_and_nothing_else_and_the_token_is_nowhere(hub, tmp_path):
    hub.upload_mode = "lfs"
    done = train(hub, tmp_path, "--hub_private_repo", "True", "--report_to", "tensorboard", output_dir="my-run")
    assert done.returncode == 0 and "pushed to" in done.stderr, done.stderr
    assert hub.repository("alice/my-run").private and num_pushes(hub, "alice/my-run") == 1
    files = uploaded(hub, "alice/my-run")
    pictures = {name for name in files if re.fullmatch(r"samples/step-2/\w+\.(gif|png)", name)}
    average = "unet/diffusion_pytorch_model.ema.safetensors"
    assert pictures and set(files) == PIPELINE_FILES | pictures | {average}
    folder = tmp_path / "my-run"
    made = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert "training_settings.yaml" in made and any("checkpoint-" in name for name in made)
    assert any("events.out" in name for name in made)
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    for path in everything:
        assert b"hf_aliceSecret" not in path.read_bytes(), path
    assert b"hf_aliceSecret" not in b"".join(files.values())
    assert b"alice/my-run" not in (folder / "README.md").read_bytes()  # that of the folder is for the folder

    again = train(hub, tmp_path, "--resume_from_checkpoint", "latest", "--hub_private_repo", "True", "--report_to",
                  "tensorboard", output_dir="my-run")  # fmt: skip
    assert again.returncode == 0 and "nothing left to do" in again.stderr, again.stderr
    assert num_pushes(hub, "alice/my-run") == 1
    done = command(hub, tmp_path, "verify", "alice/my-run", home="cold")
    assert done.returncode == 0, done.stdout + done.stderr

    for words in (["--private"], ["--revision", "dev"], ["--create_pr", "--message", "Mine"]):
        done = command(hub, tmp_path, "push", "my-run", "alice/pushed", *words)
        assert done.returncode == 0 and "pushed to http" in done.stdout, done.stderr
    assert hub.repository("alice/pushed").private and num_pushes(hub, "alice/pushed") == 1
    assert num_pushes(hub, "alice/pushed", "dev") == 1
    hub.add_repository("alice/public")
    done = command(hub, tmp_path, "push", "my-run", "alice/public", "--private")
    assert done.returncode == 1 and "is public" in done.stderr and num_pushes(hub, "alice/public") == 0


@pytest.mark.slow
def test_training_does_not_depend_on_the_hub_and_says_how_to_push_later(hub, tmp_path):
    hub.fail_next("create_repo", 503, 99)
    words = ["--hub_model_id", "alice/model", "--report_to", "none"]
    done = train(hub, tmp_path, *words, "--hub_private_repo", "True")
    assert done.returncode == 0, done.stderr
    assert "tried again when training is over" in done.stderr
    assert "Push it with: mcvd-diffusers push model alice/model --private" in done.stderr
    assert "Traceback" not in done.stderr and (tmp_path / "model" / "model_index.json").exists()
    hub._faults.clear()
    # Up at the start, down at the end.
    hub.fail_next("commit", "close", 99)
    done = train(hub, tmp_path, *words, "--resume_from_checkpoint", "latest")
    assert done.returncode == 0 and "Push it with: mcvd-diffusers push model alice/model" in done.stderr, done.stderr
    assert "tried again when" not in done.stderr and num_pushes(hub) == 0
    hub._faults.clear()
    done = train(hub, tmp_path, *words, "--resume_from_checkpoint", "latest")
    assert done.returncode == 0 and "pushed to" in done.stderr and num_pushes(hub) == 1


@pytest.mark.slow
def test_what_could_never_be_pushed_is_refused_before_training(hub, tmp_path):
    hub.add_repository("alice/mine")
    cases = [
        (["--hub_model_id", "alice/mine"], "hf_readerSecret", "does not let this token write"),
        (["--hub_model_id", "bob/new"], "hf_aliceSecret", "does not let this token write"),
        (["--hub_model_id", "alice/mine", "--hub_private_repo", "True"], "hf_aliceSecret", "is public"),
        (["--hub_model_id", "a b"], "hf_aliceSecret", "is no id on the Hub"),
        (["--push_to_hub", "False", "--hub_model_id", "alice/mine"], "hf_aliceSecret", "without --push_to_hub"),
        ([], None, "There is no token"),
    ]
    for words, token, message in cases:
        done = train(hub, tmp_path, "--report_to", "none", *words, output_dir="refused", token=token)
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode != 0 and message in last, done.stderr
        assert "step " not in done.stderr and not (tmp_path / "refused").exists()
    assert num_pushes(hub, "alice/mine") == 0 and list(hub.repositories) == [("model", "alice/mine")]


@pytest.mark.slow
def test_a_run_that_goes_on_does_so_without_a_token_that_the_hub_knows(hub, tmp_path):
    hub.add_repository("alice/mine")
    started = [*run_words(), "--output_dir", "begun", "--report_to", "none"]
    assert start(hub, tmp_path, ROOT / "train_mcvd.py", *started).returncode == 0
    words = ["--report_to", "none", "--hub_model_id", "alice/mine", "--resume_from_checkpoint", "begun/checkpoint-1"]
    for token, message in (
        (None, "There is no token"),
        ("hf_nobodysSecret", "does not know"),
        ("hf_readerSecret", "does not let this token"),
    ):
        folder = f"went-on-{len(message)}"
        done = train(hub, tmp_path, *words, output_dir=folder, token=token)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.count(message) == 2 and "tried again when training is over" in done.stderr, done.stderr
        assert f"Push it with: mcvd-diffusers push {folder} alice/mine" in done.stderr, done.stderr
    assert num_pushes(hub, "alice/mine") == 0


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_pushes_pushes_all_of_it_when_it_is_started_again(hub, tmp_path):
    hub.upload_mode = "lfs"
    words = ["--report_to", "none", "--resume_from_checkpoint", "latest"]
    hub.fail_next("commit", 503, 10_000)
    process = subprocess.Popen(
        [
            sys.executable,
            ROOT / "train_mcvd.py",
            *run_words(),
            "--output_dir",
            "model",
            "--push_to_hub",
            "True",
            *words,
        ],
        env=environment(hub, tmp_path, "home", "hf_aliceSecret"),
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    while not any(request.route == "commit" for request in hub.requests):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert num_pushes(hub) == 0 and count(hub, "lfs_upload") > 0
    hub._faults.clear()
    hub.requests.clear()
    done = train(hub, tmp_path, *words)
    assert done.returncode == 0 and "pushed to" in done.stderr and num_pushes(hub) == 1
    assert count(hub, "lfs_upload") == 0  # they are there already
    done = command(hub, tmp_path, "verify", "alice/model", home="cold", token=None)
    assert done.returncode == 0, done.stdout + done.stderr
