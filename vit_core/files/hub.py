"""Name or path -> local files, and a local folder -> the hub.

A name that is no local folder goes through huggingface_hub (0.34 to 2.x), imported only then, with its own cache and
environment variables (HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN). Every failure becomes one error, chained to the
client's, that says what is wrong and then, in its last sentence, what to do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from vit_core.files.disk import check_shard_names
from vit_core.files.documents import read_json_object
from vit_core.files.names import CONFIG_NAME, PREPROCESSOR_NAME
from vit_core.files.saving import find

StrPath = str | os.PathLike[str]
_HUB_ID = "'name' or 'org/name' of letters, digits, '-', '_' and '.'"
_LIKE = 0.8  # how like another name a mistyped one is, as difflib measures
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".pyth", ".tar", ".npz", ".h5", ".msgpack")
_INDEX = re.compile(r"\.index(\.[^.]+)?\.json$")  # model.safetensors.index.json, with a variant ...index.fp16.json


class NotCachedError(FileNotFoundError):
    """A file that the cache has not, so that, without the network, nobody knows whether it is there."""


def cached_file(
    name_or_path: StrPath,
    filename: str,
    *,
    cache_dir: StrPath | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
    revision: str | None = None,
    subfolder: str = "",
) -> Path:
    """The local path of one file of a local folder or of a hub repository, downloaded if need be.

    Raises FileNotFoundError when the file is not there, NotCachedError, which is one, when it is not to be had
    offline, PermissionError for a gated repository, ValueError for a name that can't be one, and OSError for every
    other failure.
    """
    options = _Options(cache_dir, force_download, local_files_only, token, revision, subfolder.strip("/"))
    source = _source(name_or_path, options)
    return source.find(filename) or source.fail(filename)


def resolve(
    name_or_path: StrPath,
    filenames: Sequence[str],
    *,
    optional: Sequence[str] = (PREPROCESSOR_NAME,),
    cache_dir: StrPath | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
    revision: str | None = None,
    subfolder: str = "",
) -> Path:
    """The local path of the weights: the first of `filenames` that the folder or repository has.

    `saving.beside` finds config.json and the `optional` files where the source has them, and, when the weights are an
    index, every shard it names. Nothing else is downloaded, and all of it is of one commit, even if the branch moves
    meanwhile. Raises what `cached_file` does, and ValueError for an index that names anything but files
    beside it.
    """
    options = _Options(cache_dir, force_download, local_files_only, token, revision, subfolder.strip("/"))
    source = _source(name_or_path, options)
    for filename in (CONFIG_NAME, *optional):
        source.find(filename)
    found = (source.find(filename) for filename in filenames)
    weights = next((path for path in found if path is not None), None) or source.fail(_either(filenames))
    for shard in _shards(weights):
        if source.find(shard) is None:
            source.fail(shard)
    return weights


DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
UPLOAD_OPTIONS = frozenset({"token", "private", "revision", "create_pr", "commit_message", "commit_description"})


def upload_options(given: Mapping[str, Any], caller: str, uploading: bool = True) -> dict[str, Any]:
    """The options of `upload` that a caller is given, `use_auth_token` by its newer name.

    Without `use_temp_dir`, which changes nothing. Raises TypeError for keywords that the caller does not know, and for
    any unless it is `uploading`.
    """
    options = {name: value for name, value in given.items() if name not in ("use_auth_token", "use_temp_dir")}
    if (token := given.get("use_auth_token")) is not None:
        options["token"] = token
    if unknown := options.keys() - UPLOAD_OPTIONS:
        raise TypeError(f"{caller}() got unexpected keywords: {', '.join(sorted(unknown))}.")
    if not uploading and (asked := [name for name, value in options.items() if value]):
        raise TypeError(f"{', '.join(asked)}: only an upload takes that: pass push_to_hub=True with it.")
    return options


def push(save: Callable[[str], Any], repo_id: str, delete_patterns: Sequence[str] = (), /, **given: Any) -> str:
    """Upload what is saved to an empty folder, as `push_to_hub` with these options is to do."""
    options = upload_options(given, "push_to_hub")
    with TemporaryDirectory() as folder:
        save(folder)
        return upload(folder, repo_id, delete_patterns=delete_patterns, **options)


def upload(
    folder: StrPath,
    repo_id: str,
    *,
    names: Collection[str] | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    delete_patterns: Sequence[str] = (),
) -> str:
    """Push these files of a folder as one commit; return the URL of the commit or of the pull request.

    Without `names` all of its files are pushed, hidden ones aside.
    The repository and the branch `revision` are created when missing. Top-level files there that match one of
    `delete_patterns` and are not in the folder are deleted in the same commit, so that no stale weights outlive the
    new ones. (Hence not by the client's `upload_folder`, whose newer versions may split a folder over several commits.)
    Raises FileNotFoundError for a missing folder, PermissionError without write access, ValueError for a malformed
    id, and OSError for every other failure.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"The folder {root} to upload does not exist. Save the model there first.")
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    if names is None:
        paths = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        names = [name for name in paths if not name.startswith(".") and "/." not in name]
    try:
        api = HfApi(token=token)
        target = api.create_repo(repo_id, private=private, exist_ok=True).repo_id  # 'name' became 'user/name'
        if revision is not None and not create_pr:
            api.create_branch(target, branch=revision, exist_ok=True)
        present = api.list_repo_files(target, revision=revision) if delete_patterns else []
        gone = [name for name in present if "/" not in name and name not in names]
        stale = [name for name in gone if any(fnmatch(name, pattern) for pattern in delete_patterns)]
        commit = api.create_commit(
            target,
            [
                *(CommitOperationDelete(name) for name in stale),
                *(CommitOperationAdd(name, root / name) for name in sorted(names)),
            ],
            commit_message=commit_message or "Upload model",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    except Exception as error:  # requests, httpx, httpx2 and hf_xet share no base class
        raise _explain_upload(error, root, repo_id) from error
    return str(commit.pr_url or commit.commit_url)


@dataclass(frozen=True)
class _Options:
    cache_dir: StrPath | None
    force_download: bool
    local_files_only: bool
    token: str | bool | None
    revision: str | None
    subfolder: str


@dataclass(frozen=True)
class _Folder:
    """A local folder as a source of files."""

    path: Path

    def find(self, filename: str) -> Path | None:
        """The path of the file, or None."""
        found = find(self.path, filename)
        return found if found.is_file() else None

    def fail(self, wanted: str) -> NoReturn:
        """Raise the error for what `find` did not find."""
        held = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        raise FileNotFoundError(
            f"The folder {self.path} has no {wanted}; it holds {', '.join(held[:20]) or 'nothing'}. "
            "Pass the folder or the subfolder= that has it, or filename= with another name of the weights."
        )


@dataclass
class _Repo:
    """A hub repository as a source of files, pinned to a commit by the first answer."""

    name: str
    options: _Options
    commit: str | None = None
    absent: Exception | None = None  # why the last file that was not found was not found
    unreachable: bool = False  # once it is, the rest is looked for in the cache alone

    def find(self, filename: str) -> Path | None:
        """The path of the file, or None when the repository lacks it or, offline, the cache does."""
        from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        options, cache = self.options, self.options.cache_dir
        path = f"{options.subfolder}/{filename}" if options.subfolder else filename
        if self.commit is not None and not options.force_download:
            known = try_to_load_from_cache(self.name, path, _plain(cache), self.commit)
            if known is _CACHED_NO_EXIST:
                return None
        try:
            found = hf_hub_download(
                self.name,
                path,
                revision=self.commit or options.revision,
                cache_dir=_plain(cache),
                force_download=options.force_download,
                local_files_only=options.local_files_only or self.unreachable,
                token=options.token,
            )
        except LocalEntryNotFoundError as error:
            known = try_to_load_from_cache(self.name, path, _plain(cache), self.commit or options.revision)
            if known is not _CACHED_NO_EXIST and not self.unreachable:
                self.absent = error
            self.unreachable = True
            return None
        except EntryNotFoundError as error:
            self.absent = error
            response = getattr(error, "response", None)
            self.commit = self.commit or (response.headers.get("X-Repo-Commit") if response is not None else None)
            return None
        except Exception as error:  # requests, httpx, httpx2 and hf_xet share no base class
            raise self._explain(error, filename) from error
        self.commit = Path(found).parents[path.count("/")].name  # <cache>/models--org--name/snapshots/<commit>/<path>
        return Path(found)

    def fail(self, wanted: str) -> NoReturn:
        """Raise the error for what `find` did not find."""
        raise self._explain(self.absent, wanted) from self.absent

    def _explain(self, error: Exception | None, wanted: str) -> OSError | ValueError:
        options = self.options
        where = f"/{options.subfolder}" if options.subfolder else ""
        what = f"{wanted} of '{self.name}{where}'"
        return _explain(error, self.name, what, options.revision or "main", options.cache_dir)


def _source(name_or_path: StrPath, options: _Options) -> _Folder | _Repo:
    """What a name means: an existing folder wins, what looks like a path must exist, all else is a hub id."""
    name = os.fspath(name_or_path)
    if ".." in re.split(r"[/\\]", options.subfolder):
        raise ValueError(f"subfolder={options.subfolder!r} leads out of {name!r}. Pass a folder inside it.")
    path = Path(os.path.expanduser(name))
    if name and path.is_dir():
        return _Folder(path / options.subfolder)
    if path.is_file():
        raise NotADirectoryError(f"{name!r} is a file, expected a folder. Pass its folder, {str(path.parent)!r}.")
    looks_local = name.startswith((".", "~")) or "\\" in name or name.count("/") > 1 or path.is_absolute()
    near = _near(path)
    if looks_local or not isinstance(name_or_path, str):
        there = f", but {near} does" if near else ""
        raise FileNotFoundError(
            f"The folder {name!r} does not exist{there}. Correct the path, or pass a hub id 'org/name'."
        )
    if options.revision is None and near:
        raise FileNotFoundError(
            f"There is no {'folder' if near.is_dir() else 'file'} {name} here; {near} is. Correct the name, or pass "
            f"revision='main' to take {name!r} from the hub."
        )
    if options.force_download and options.local_files_only:
        raise ValueError("force_download=True needs the network that local_files_only=True forbids. Pass only one.")
    return _Repo(name, options)


def _near(path: Path) -> Path | None:
    """The model's folder, or weights file, whose name is most like that of one that is not there, if there is one."""
    with suppress(OSError):
        models = {each.name.lower(): each for each in sorted(path.parent.iterdir()) if _holds_model(each)}
        return next((models[name] for name in get_close_matches(path.name.lower(), models, 1, _LIKE)), None)
    return None


def _holds_model(path: Path) -> bool:
    """Whether this is a weights file, or a folder with one or with a configuration."""
    held = path.iterdir() if path.is_dir() else [path]
    return any(each.name == "config.json" or each.suffix in _WEIGHTS for each in held)


def _shards(weights: Path) -> list[str]:
    """The files an index names, sorted; none for other weights. Raises ValueError for an index not to be trusted."""
    if not _INDEX.search(weights.name):
        return []
    weight_map = read_json_object(weights).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{weights} has no weight_map from tensors to file names. Save or download it again.")
    check_shard_names(set(names), Path(_INDEX.sub("", weights.name)).suffix, str(weights))
    return sorted(set(names))


def _explain(
    error: BaseException | None, name: str, what: str, revision: str, cache_dir: StrPath | None
) -> OSError | ValueError:
    """What a failed download raises: what is wrong, then what to do. No error at all: a file known to be absent."""
    from huggingface_hub import constants, errors

    wrapped = type(error) is ValueError or isinstance(error, errors.LocalEntryNotFoundError)
    if error is not None and error.__cause__ is not None and wrapped:
        error = error.__cause__  # the network's error, offline mode, a refusal
    hub, cache = constants.ENDPOINT, cache_dir or constants.HF_HUB_CACHE
    match error:
        case errors.HFValidationError():
            return ValueError(f"{name!r} is neither a local folder nor a hub id ({_HUB_ID}). Correct the name.")
        case errors.GatedRepoError():
            todo = f"Accept its conditions at {hub}/{name} and pass token= of the account that did."
            return PermissionError(f"{name!r} is gated. {todo}")
        case errors.RepositoryNotFoundError():
            todo = "Correct the name or, if the repository is private, pass token=."
            return OSError(f"{name!r} is neither a local folder nor a repository that {hub} shows you. {todo}")
        case errors.RevisionNotFoundError():
            todo = f"Pass as revision= a branch, tag or commit listed at {hub}/{name}."
            return OSError(f"{name!r} has no revision {revision!r}. {todo}")
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            todo = "Load it once with the network on, or pass cache_dir= of a cache that has it."
            off = "the network is switched off (local_files_only=True or HF_HUB_OFFLINE)"
            missed = f"{what} at revision {revision!r} is not in the cache {cache} and {off}. {todo}"
            return NotCachedError(f"{name!r} is no folder here; {missed}")
        case None | errors.EntryNotFoundError():
            todo = f"Pass the revision= or subfolder= that has it: see {hub}/{name}/tree/{revision}."
            return FileNotFoundError(f"There is no {what} at revision {revision!r}. {todo}")
        case errors.LocalTokenNotFoundError():
            return PermissionError("token=True but no token is saved. Run `hf auth login`, or pass the token itself.")
        case OSError() if error.errno is not None:
            todo = "Free some space, or pass cache_dir= a folder that can be written."
            return OSError(f"{what} could not be stored in the cache {cache} ({_why(error)}). {todo}")
        case OSError() if "Consistency check failed" in str(error):
            todo = "Try again with force_download=True."
            return OSError(f"{what} did not arrive with the size that {hub} announced ({_why(error)}). {todo}")
    return OSError(f"{name!r} is no folder here, and {_explain_transfer(error, what)}")


def _explain_upload(error: Exception, folder: Path, repo_id: str) -> OSError | ValueError:
    """What a failed upload raises: what is wrong, then what to do."""
    from huggingface_hub import constants, errors

    what = f"the upload of {folder} to {repo_id!r}"
    if isinstance(error, errors.HFValidationError):
        return ValueError(f"{repo_id!r} is no hub id ({_HUB_ID}). Correct the name.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return OSError(f"HF_HUB_OFFLINE forbids {what}. Unset it and try again.")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.LocalTokenNotFoundError) or status in (401, 403, 404):
        todo = "Pass token= with write access to it, set HF_TOKEN, or run `hf auth login`."
        return PermissionError(f"{constants.ENDPOINT} does not let you write to {repo_id!r} ({_why(error)}). {todo}")
    return _explain_transfer(error, what)


def _explain_transfer(error: BaseException, what: str) -> OSError:
    """What is raised when the hub refused, or was none, or the network failed."""
    from huggingface_hub import constants, errors

    hub, why = constants.ENDPOINT, _why(error)
    if isinstance(error, errors.FileMetadataError):
        return OSError(f"{hub} does not answer as a hub does ({why}). Check HF_ENDPOINT and the proxy.")
    if getattr(error, "response", None) is not None:
        return OSError(f"{hub} refused {what} ({why}). Check token= if it is about your rights, else try again later.")
    todo = "Check the network and HF_ENDPOINT and try again."
    return OSError(f"{hub} did not answer, or broke off, for {what} ({why}). {todo}")


def _either(names: Sequence[str]) -> str:
    """'a', 'a or b', 'a, b or c'."""
    return " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _why(error: BaseException) -> str:
    """An error's kind and the first line of its text, the hub's own words if it sent any."""
    lines = str(getattr(error, "server_message", None) or error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])[:300].rstrip(". ")


def _plain(path: StrPath | None) -> str | None:
    """A path as the string that every version of the client takes."""
    return None if path is None else os.path.expanduser(path)
