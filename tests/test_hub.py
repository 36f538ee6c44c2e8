"""vit_core.files.hub against the real huggingface_hub client and a hub served on 127.0.0.1 (`hub_server.py`).

The client reads its environment at import, so each test runs it in a process of its own, one process for as many calls
as can share it. Waiting between the client's retries is cut out there; nothing else about the client is changed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hub_server import HubServer, Repo, Request, client_environment

from vit_core.files import hub as vit_hub

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "ckpt" / "cls"
WEIGHTS = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
DRIVER = """
import json, sys, time
time.sleep = lambda seconds: None
from vit_core.files import hub
for name, args, options in json.loads(sys.argv[1]):
    if name == "limit_file_size":
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (args[0], args[0]))
        continue
    try:
        if name == "find_processor":
            from vit_core.app.opening import ViTConfig, find_processor
            answer = {"value": str(find_processor(*args, ViTConfig()))}
        elif name == "processor":
            from vit_core.pictures.processing import AutoImageProcessor
            answer = {"value": str(AutoImageProcessor.from_pretrained(*args).size)}
        else:
            answer = {"value": str(getattr(hub, name)(*args, **options))}
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        answer = {"error": str(error), "kinds": kinds, "chained": error.__cause__ is not None}
    print(json.dumps(answer))
"""


def read(folder: str | Path) -> dict[str, bytes]:
    """A folder's files by name."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


WHOLE, SHARDED = read(GOLDEN / "pt_safetensors"), read(GOLDEN / "pt_safetensors_sharded")
SHARDS = sorted(name for name in SHARDED if name.startswith("model-"))


class Answer(NamedTuple):
    """What one call gave: a value, or an error's text, class names (method resolution order) and chaining."""

    value: str = ""
    error: str = ""
    kinds: tuple[str, ...] = ()
    chained: bool = False

    @property
    def path(self) -> Path:
        assert not self.error, self.error
        return Path(self.value)


def call(name: str, *args: object, **options: object) -> tuple[str, tuple[object, ...], dict[str, object]]:
    return name, args, options


def resolve(name: str, filenames: list[str] = WEIGHTS, **options: object) -> tuple[Any, ...]:
    return call("resolve", name, filenames, **options)


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as hub:
        other = {"pytorch_model.bin": b"\0other", "tf_model.h5": b"\0format", "README.md": b"# Read me\n"}
        for name, files in (("org/whole", {**WHOLE, **other}), ("org/sharded", {**SHARDED, **other})):
            hub.repos[name] = Repo()
            hub.repos[name].commit(files)
        yield hub


@pytest.fixture
def client(server: HubServer, tmp_path: Path) -> Callable[..., list[Answer]]:
    """Runs calls of vit_core.files.hub in a fresh process that knows this server only; keywords are its environment."""

    def run(*calls: tuple[Any, ...], **env: str) -> list[Answer]:
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, json.dumps(calls)],
            env={**client_environment(server, tmp_path / "home"), "PYTHONPATH": str(ROOT), **env},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [Answer(**json.loads(line)) for line in done.stdout.splitlines()]

    return run


def refused(answer: Answer, kind: str, *texts: str) -> None:
    """The call failed with this class, and its message says these things and ends as a sentence."""
    assert answer.error, f"expected a {kind}, got {answer.value}"
    assert kind in answer.kinds, answer
    for text in texts:
        assert text in answer.error, answer.error
    assert answer.error.endswith("."), answer.error
    assert "\n" not in answer.error, answer.error


# What is downloaded


def test_a_whole_checkpoint_and_nothing_else(server, client):
    first, again = client(resolve("org/whole"), resolve("org/whole"), HF_TOKEN="hf_reader")
    assert first.path.name == "model.safetensors"
    assert read(first.path.parent) == WHOLE
    assert again == first
    assert server.asked("GET") == ["config.json", "model.safetensors"]
    sent = [(request.cdn, "authorization" in request.headers) for request in server.requests]
    assert (False, True) in sent
    assert (True, False) in sent
    assert (True, True) not in sent  # the token stays with the hub, the CDN never sees it


def test_a_sharded_checkpoint_and_nothing_else(server, client):
    (answer,) = client(resolve("org/sharded"))
    assert answer.path.name == "model.safetensors.index.json"
    assert read(answer.path.parent) == SHARDED
    assert server.asked("GET") == ["config.json", "model.safetensors.index.json", *SHARDS]


def test_the_named_format_the_optional_files_and_one_file(server, client):
    server.repos["org/whole"].commit({**WHOLE, "tf_model.h5": b"\0h5", "preprocessor_config.json": b"{}"})
    named, one = client(
        resolve("org/whole", ["tf_model.h5"]), call("cached_file", "org/whole", "preprocessor_config.json")
    )
    assert set(read(named.path.parent)) == {"config.json", "preprocessor_config.json", "tf_model.h5"}
    assert one.path.read_bytes() == b"{}"
    assert "model.safetensors" not in server.asked("GET")


def test_no_config_is_left_to_the_caller(server, client):
    server.repos["org/bare"] = Repo()
    server.repos["org/bare"].commit({"model.safetensors": WHOLE["model.safetensors"]})
    (answer,) = client(resolve("org/bare"))
    assert set(read(answer.path.parent)) == {"model.safetensors"}


def test_subfolder(server, client):
    server.repos["org/sub"] = Repo()
    server.repos["org/sub"].commit({f"a/b/{name}": data for name, data in SHARDED.items()})
    found, bare, missing, outside = client(
        resolve("org/sub", subfolder="a/b"),
        resolve("org/sub"),
        call("cached_file", "org/sub", "config.json", subfolder="a"),
        resolve("org/sub", subfolder="a/../.."),
    )
    assert found.path.parent.parts[-2:] == ("a", "b")
    assert read(found.path.parent) == SHARDED
    refused(bare, "FileNotFoundError", "There is no model.safetensors, model", "of 'org/sub'", "subfolder=")
    refused(missing, "FileNotFoundError", "There is no config.json of 'org/sub/a' at revision 'main'")
    refused(outside, "ValueError", "leads out of 'org/sub'", "Pass a folder inside it.")


def test_revisions(server, client):
    repo = server.repos["org/whole"]
    old = repo.refs["v1"] = repo.refs["main"]
    new = repo.commit({**WHOLE, "config.json": b'{"new": true}'}, "next/try")
    branch, tag, commit, missing = client(
        resolve("org/whole", revision="next/try"),
        resolve("org/whole", revision="v1"),
        resolve("org/whole", revision=old),
        resolve("org/whole", revision="v2"),
    )
    assert branch.path.parent.name == new
    assert (branch.path.parent / "config.json").read_bytes() == b'{"new": true}'
    assert tag.path.parent.name == commit.path.parent.name == old
    refused(missing, "OSError", "'org/whole' has no revision 'v2'.", "Pass as revision= a branch, tag or commit")


def test_a_branch_that_moves_gives_one_commit(server, client):
    repo = server.repos["org/sharded"]
    old = repo.refs["main"]

    def push(request: Request) -> None:
        if not request.path.endswith("/config.json") and len(repo.commits) == 1:  # config.json is here, nothing else
            repo.commit({name: b"\0" + data for name, data in SHARDED.items()})

    server.before = push
    (answer,) = client(resolve("org/sharded"))
    assert repo.refs["main"] != old
    assert answer.path.parent.name == old
    assert read(answer.path.parent) == SHARDED


def test_a_renamed_repository(server, client):
    server.renamed["org/former"] = "org/whole"
    (answer,) = client(resolve("org/former"))
    assert read(answer.path.parent) == WHOLE


# The cache


def test_cache_hits_need_no_network(server, client):
    (first,) = client(resolve("org/sharded"))
    server.requests.clear()
    (again,) = client(resolve("org/sharded"))
    assert (server.asked("HEAD"), server.asked("GET")) == (["config.json"], [])  # has the branch moved? no more
    server.requests.clear()
    offline = client(resolve("org/sharded"), call("cached_file", "org/sharded", "config.json"), HF_HUB_OFFLINE="1")
    local = client(resolve("org/sharded", local_files_only=True))
    assert server.requests == []
    pinned = client(resolve("org/sharded", revision=first.path.parent.name))
    assert server.requests == []
    server.stop()
    stopped = client(resolve("org/sharded"))
    for answer in (again, offline[0], local[0], pinned[0], stopped[0]):
        assert answer.path == first.path
    assert offline[1].path == first.path.with_name("config.json")


def test_force_download_asks_again(server, client):
    client(resolve("org/whole"))
    server.requests.clear()
    answer, both = client(
        resolve("org/whole", force_download=True),
        resolve("org/whole", force_download=True, local_files_only=True),
    )
    assert read(answer.path.parent) == WHOLE
    assert server.asked("GET") == ["config.json", "model.safetensors"]
    refused(both, "ValueError", "force_download=True needs the network", "Pass only one.")


def test_cache_dir(client, tmp_path):
    (answer,) = client(resolve("org/whole", cache_dir=str(tmp_path / "elsewhere")))
    assert answer.path.is_relative_to(tmp_path / "elsewhere")


def test_offline_and_not_cached(server, client):
    client(call("cached_file", "org/whole", "config.json"))
    server.requests.clear()
    calls = [resolve("org/whole"), resolve("org/other"), resolve("org/whole", force_download=True)]
    (local,) = client(resolve("org/whole", local_files_only=True))
    for answer in (*client(*calls, HF_HUB_OFFLINE="1"), local):
        refused(answer, "NotCachedError", "is not in the cache", "HF_HUB_OFFLINE", "Load it once with the network on")
        assert {"FileNotFoundError"} < set(answer.kinds) and answer.chained
        assert answer.error.startswith("'org/") and "' is no folder here; " in answer.error
    assert "model.safetensors, model.safetensors.index.json or pytorch_model.bin of 'org/whole'" in local.error
    assert server.requests == []


def test_offline_no_default_takes_the_place_of_a_processor_that_is_not_cached(client):
    client(*(call("cached_file", "org/whole", name) for name in WHOLE))
    unknown = client(call("find_processor", "org/whole"), HF_HUB_OFFLINE="1")[0]
    refused(unknown, "NotCachedError", "preprocessor_config.json of 'org/whole' at revision 'main' is not in the cache")
    client(resolve("org/whole"))  # which finds that it is not there
    absent, default = client(
        call("cached_file", "org/whole", "preprocessor_config.json"),
        call("find_processor", "org/whole"),
        HF_HUB_OFFLINE="1",
    )
    refused(absent, "FileNotFoundError", "There is no preprocessor_config.json of 'org/whole' at revision 'main'")
    assert "NotCachedError" not in absent.kinds
    assert default.value.startswith("ViTImageProcessor ")


def test_the_processor_of_a_repository_of_timm(server, client):
    """Its config.json says what is asked for, and no weights are fetched; of another model it says nothing."""
    pretrained = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    config = json.dumps({"architecture": "vit_tiny_patch16_224", "pretrained_cfg": pretrained})
    server.repos["org/timm"] = Repo()
    server.repos["org/timm"].commit({**WHOLE, "config.json": config.encode()})
    found, other = client(call("processor", "org/timm"), call("processor", "org/whole"))
    (offline,) = client(call("processor", "org/timm"), HF_HUB_OFFLINE="1")
    assert found == offline == Answer("{'shortest_edge': 32}")
    refused(other, "FileNotFoundError", "There is no preprocessor_config.json of 'org/whole' at revision 'main'")
    assert set(server.asked("GET")) == {"config.json"}


# Who may read


def test_private_and_unknown_repositories(server, client):
    server.repos["org/whole"].private = True
    names = ("org/whole", "org/unknown", "unknown")
    for answer, name in zip(client(*map(resolve, names)), names, strict=True):
        refused(answer, "OSError", f"{name!r} is neither a local folder nor a repository that {server.url} shows you")
        refused(answer, "OSError", "Correct the name or, if the repository is private, pass token=.")
        assert answer.chained
    bad, forced, given, saved = client(
        resolve("org/whole", token="hf_wrong"),
        resolve("org/whole", force_download=True),
        resolve("org/whole", token="hf_reader"),
        resolve("org/whole", token=True),
    )
    refused(bad, "OSError", "pass token=.")
    refused(forced, "OSError", "pass token=.")
    assert read(given.path.parent) == WHOLE
    refused(saved, "PermissionError", "token=True but no token is saved. Run `hf auth login`")
    server.repos["org/sharded"].private = True
    (inherited,) = client(resolve("org/sharded"), HF_TOKEN="hf_reader")
    assert read(inherited.path.parent) == SHARDED


def test_gated_repositories(server, client):
    server.repos["org/whole"].gated = True
    for answer in client(resolve("org/whole"), resolve("org/whole", token="hf_reader")):
        refused(answer, "PermissionError", f"Accept its conditions at {server.url}/org/whole and pass token=")
        assert answer.chained
    server.admitted.add("hf_reader")
    (answer,) = client(resolve("org/whole", token="hf_reader"))
    assert read(answer.path.parent) == WHOLE


# Transfers that go wrong


def test_a_broken_transfer_resumes(server, client):
    data = bytes(range(256)) * 44 * 1024  # 11 MiB: the client writes, and resumes after, pieces of 10 MiB
    server.repos["org/whole"].commit({"model.safetensors": data})
    server.break_after_bytes = len(data) - 1
    first, again = client(resolve("org/whole"), resolve("org/whole"))
    # From 1.x on the client resumes by itself, before that the next call takes up what the first one left.
    if first.error:
        assert first.error.startswith("'org/whole' is no folder here, and http")
        refused(first, "OSError", "did not answer, or broke off, for model.safetensors of 'org/whole'", "try again")
    assert again.path.read_bytes() == data
    ranges = [request.headers.get("range") for request in server.requests if request.cdn]
    assert ranges == [None, f"bytes={10 * 2**20}-"]


def test_a_transfer_that_keeps_breaking(server, client):
    server.break_after_bytes, server.breaks = 0, 1000
    (answer,) = client(resolve("org/whole"))
    refused(
        answer,
        "OSError",
        "did not answer, or broke off, for config.json of 'org/whole'",
        "Check the network and HF_ENDPOINT",
    )
    assert answer.chained


def test_a_wrong_size(server, client):
    server.lie_about_size = 7
    (answer,) = client(resolve("org/whole"))
    size = len(WHOLE["model.safetensors"])
    refused(
        answer,
        "OSError",
        "model.safetensors of 'org/whole' did not arrive with the size",
        f"{size + 7} but has size {size}",
    )
    refused(answer, "OSError", "Try again with force_download=True.")
    server.reset_faults()
    (answer,) = client(resolve("org/whole", force_download=True))
    assert read(answer.path.parent) == WHOLE


def test_a_hub_that_is_down_unwell_or_no_hub(server, client):
    server.fail_with = 503
    unwell, forced = client(resolve("org/whole"), resolve("org/whole", force_download=True))
    for answer in (unwell, forced):
        refused(answer, "OSError", f"{server.url} refused", "of 'org/whole'", "try again later.")
    server.reset_faults()
    server.forget_headers = True
    (portal,) = client(resolve("org/whole"))
    refused(portal, "OSError", f"{server.url} does not answer as a hub does", "Check HF_ENDPOINT and the proxy.")
    server.stop()
    (down,) = client(resolve("org/whole"))
    refused(
        down,
        "OSError",
        "did not answer, or broke off, for model.safetensors, model",
        "Check the network and HF_ENDPOINT and try again",
    )
    assert all(answer.chained for answer in (unwell, forced, portal, down))


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files as POSIX can")
def test_a_cache_that_cannot_be_written(client, tmp_path):
    (tmp_path / "file").touch()
    no_folder, full = client(
        resolve("org/whole", cache_dir=str(tmp_path / "file")),
        call("limit_file_size", 20_000),  # what a full disk does, config.json still fits
        resolve("org/whole"),
    )
    for answer in (no_folder, full):
        refused(answer, "OSError", "could not be stored in the cache", "Free some space, or pass cache_dir=")
        assert answer.chained
    assert full.error.startswith("model.safetensors of 'org/whole'")


@pytest.mark.parametrize("shard", ["../evil.safetensors", "/etc/evil.safetensors", "sub/evil.safetensors", "evil.bin"])
def test_a_malicious_index_is_refused_before_its_files_are_asked_for(server, client, shard):
    index = json.dumps({"metadata": {}, "weight_map": {"a": SHARDS[0], "b": shard}}).encode()
    server.repos["org/sharded"].commit({**SHARDED, "model.safetensors.index.json": index, "evil.bin": b"\0"})
    (answer,) = client(resolve("org/sharded"))
    refused(answer, "ValueError", f"names the shard {shard!r}", "expected a bare file name ending in .safetensors")
    assert server.asked("GET") == ["config.json", "model.safetensors.index.json"]
    assert not any("evil" in request.path or SHARDS[0] in request.path for request in server.requests)


# Pushing


def test_a_push_can_be_downloaded_again(server, client):
    pushed, unchanged, back = client(
        call("upload", str(GOLDEN / "pt_safetensors_sharded"), "me/new", private=True, commit_message="First"),
        call("upload", str(GOLDEN / "pt_safetensors_sharded"), "me/new"),
        resolve("me/new"),
        HF_TOKEN="hf_writer",
    )
    repo = server.repos["me/new"]
    assert repo.private
    assert pushed.value == unchanged.value == f"{server.url}/me/new/commit/{repo.refs['main']}"
    assert len(repo.commits) == 2  # the empty one and ours
    assert read(back.path.parent) == SHARDED
    assert sum(request.method == "PUT" for request in server.requests) == len(SHARDS)


def test_a_push_replaces_stale_weights_in_one_commit(server, client, tmp_path):
    folder = tmp_path / "model"
    (folder / ".cache").mkdir(parents=True)
    (folder / ".cache" / "junk").touch()
    for name, data in SHARDED.items():
        (folder / name).write_bytes(data)
    pushed, back = client(
        call("upload", str(folder), "org/whole", delete_patterns=["model*.safetensors", "*.index.json"]),
        resolve("org/whole"),
        HF_TOKEN="hf_writer",
    )
    assert not pushed.error
    repo = server.repos["org/whole"]
    assert len(repo.commits) == 2
    assert set(repo.commits[repo.refs["main"]]) == {*SHARDED, "pytorch_model.bin", "tf_model.h5", "README.md"}
    assert read(back.path.parent) == SHARDED


def test_a_push_to_a_branch_a_pull_request_and_the_own_namespace(server, client):
    folder = str(GOLDEN / "pt_safetensors")
    branch, request, own = client(
        call("upload", folder, "org/sharded", revision="whole", token="hf_writer"),
        call("upload", folder, "org/sharded", create_pr=True, token="hf_writer"),
        call("upload", folder, "mine", token="hf_writer"),
    )
    repo = server.repos["org/sharded"]
    assert branch.value == f"{server.url}/org/sharded/commit/{repo.refs['whole']}"
    assert request.value == f"{server.url}/org/sharded/discussions/1"
    assert repo.commits[repo.refs["refs/pr/1"]]["model.safetensors"] == WHOLE["model.safetensors"]
    assert "model.safetensors" not in repo.commits[repo.refs["main"]]
    assert "/user/mine/commit/" in own.value


def test_pushes_that_fail(server, client, tmp_path):
    folder = str(GOLDEN / "pt_safetensors")
    anonymous, reader, malformed, missing = client(
        call("upload", folder, "org/new"),
        call("upload", folder, "org/whole", token="hf_reader"),
        call("upload", folder, "not/an/id"),
        call("upload", str(tmp_path / "none"), "org/new"),
    )
    refused(anonymous, "PermissionError", "does not let you write to 'org/new'", "Pass token= with write access")
    refused(reader, "PermissionError", "does not let you write to 'org/whole'", "Pass token= with write access")
    refused(malformed, "ValueError", "'not/an/id' is no hub id", "Correct the name.")
    refused(missing, "FileNotFoundError", "to upload does not exist", "Save the model there first.")
    server.break_after_bytes, server.breaks = 0, 1000
    broken, offline = (
        client(call("upload", folder, "org/new", token="hf_writer"), **env)[0] for env in ({}, {"HF_HUB_OFFLINE": "1"})
    )
    refused(broken, "OSError", "broke off, for the upload of", "to 'org/new'", "Check the network")
    refused(offline, "OSError", "HF_HUB_OFFLINE forbids the upload of", "Unset it and try again.")
    assert all(answer.chained for answer in (anonymous, reader, malformed, broken, offline))


# Names and local folders


def test_names_that_can_be_no_repository(client, tmp_path):
    names = ["org/na me", "org--x", "-x", "", "org/x.git", "a\tb"]
    for answer, name in zip(client(*map(resolve, names)), names, strict=True):
        refused(answer, "ValueError", f"{name!r} is neither a local folder nor a hub id", "Correct the name.")


@pytest.mark.parametrize("name", ["./none", "../none", "~/none-here", "/none/here", "a/b/c", "a\\b", Path("org/name")])
def test_paths_that_do_not_exist(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"does not exist\. Correct the path, or pass a hub id 'org/name'\."):
        vit_hub.resolve(name, WEIGHTS)


def test_a_local_folder_wins_and_needs_no_client(tmp_path):
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "sub").symlink_to(GOLDEN / "pt_safetensors_sharded")
    script = """
import sys
from vit_core.files import hub
weights = hub.resolve("org/sub", ["model.safetensors", "model.safetensors.index.json"], token=True, revision="x")
assert hub.resolve("org", ["model.safetensors.index.json"], subfolder="sub") == weights
assert hub.cached_file("org/sub", "config.json") == weights.with_name("config.json")
assert not [name for name in sys.modules if name.startswith(("huggingface_hub", "torch", "tensorflow", "jax"))]
print(weights)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(Path("org/sub/model.safetensors.index.json"))


def test_local_folders_that_lack_something(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError,
        match=r"has no model\.safetensors, .* or pytorch_model\.bin; it holds config\.json\. Pass the",
    ):
        vit_hub.resolve(tmp_path, WEIGHTS)
    with pytest.raises(FileNotFoundError, match=r"none has no config\.json; it holds nothing\. Pass the folder"):
        vit_hub.cached_file(str(tmp_path), "config.json", subfolder="none")
    with pytest.raises(NotADirectoryError, match=r"is a file, expected a folder\. Pass its folder"):
        vit_hub.resolve(tmp_path / "config.json", WEIGHTS)
    (tmp_path / "model.safetensors.index.json").write_bytes(SHARDED["model.safetensors.index.json"])
    with pytest.raises(FileNotFoundError, match=rf"has no {SHARDS[0]}; it holds config\.json"):
        vit_hub.resolve(tmp_path, WEIGHTS)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": ["a"]}'])
def test_local_index_without_files(index, tmp_path):
    (tmp_path / "model.safetensors.index.fp16.json").write_text(index)
    with pytest.raises(ValueError, match=r"has no weight_map from tensors to file names\. Save or download it again\."):
        vit_hub.resolve(tmp_path, ["model.safetensors.index.fp16.json"])
