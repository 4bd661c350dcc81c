"""The registry on real distributions: metadata folders on a path of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

import graphopt
from graphopt.errors import MissingExtraError, PipelineError, RegistryError
from graphopt.pipeline.pass_ import GraphPass
from graphopt.pipeline.registry import Registry, backends, passes

GROUP = "graphopt.passes"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on sys.path into which `install` puts modules and distributions."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("plug"):
            del sys.modules[name]


def install(
    site: Path, distribution: str, entries: dict[str, str], modules: dict[str, str], group: str = GROUP
):
    folder = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for name, source in modules.items():
        (site / f"{name}.py").write_text(source)


def registry() -> Registry:
    return Registry(GROUP, "pass")


def test_an_installed_name_is_listed_without_import_and_loaded_when_asked_for(site):
    install(site, "plug-one", {"one": "plug_one:One"}, {"plug_one": "class One:\n    name = 'one'\n"})
    known = registry()
    assert "one" in known and "one" in known.names() and list(known) == sorted(known.names())
    assert known.owner("one") == "plug_one:One (plug-one 1.0)"
    assert "plug_one" not in sys.modules
    assert known.get("one").__name__ == "One"
    assert "plug_one" in sys.modules
    assert known.get("one") is known.get("one")


def test_two_distributions_claiming_one_name_are_both_named(site):
    install(site, "plug-first", {"same": "plug_a:A"}, {"plug_a": ""})
    install(site, "plug-second", {"same": "plug_b:B"}, {"plug_b": ""})
    for ask in (registry().names, lambda: registry().get("other"), lambda: "x" in registry()):
        with pytest.raises(RegistryError) as caught:
            ask()
        message = str(caught.value)
        assert "'same' is claimed by" in message
        assert "plug_a:A (plug-first 1.0)" in message and "plug_b:B (plug-second 1.0)" in message
    assert "plug_a" not in sys.modules and "plug_b" not in sys.modules


def test_two_distributions_claiming_one_object_are_a_clash_too(site):
    install(site, "plug-first", {"same": "plug_a:A"}, {"plug_a": ""})
    install(site, "plug-second", {"same": "plug_a:A"}, {})
    with pytest.raises(
        RegistryError, match="plug-first 1.0.*plug-second 1.0|plug-second 1.0.*plug-first 1.0"
    ):
        registry().names()


def test_one_distribution_claiming_a_name_twice_is_a_clash(site):
    install(site, "plug-one", {"same": "plug_a:A\nsame = plug_a:B"}, {"plug_a": ""})
    with pytest.raises(RegistryError, match=r"plug_a:A \(plug-one 1.0\) and by plug_a:B \(plug-one 1.0\)"):
        registry().names()


def test_the_same_distribution_seen_twice_on_the_path_is_no_clash(site, tmp_path_factory, monkeypatch):
    entry = {"one": "plug_one:One"}
    install(site, "plug-one", entry, {"plug_one": "class One: ..."})
    other = tmp_path_factory.mktemp("site")
    install(other, "plug-one", entry, {})
    monkeypatch.syspath_prepend(other)
    assert "one" in registry().names()


def test_groups_are_apart(site):
    install(site, "plug-one", {"one": "plug_one:One"}, {"plug_one": ""}, group="graphopt.backends")
    assert "one" not in registry()
    assert "one" in Registry("graphopt.backends", "backend")


def test_unknown_names_come_with_the_nearest_and_with_the_list(site):
    install(site, "plug-one", {"fold-scale": "plug_one:One", "other": "plug_one:Two"}, {"plug_one": ""})
    with pytest.raises(PipelineError) as caught:
        registry().get("fold-scales")
    message = str(caught.value)
    assert message.startswith("unknown pass 'fold-scales' (did you mean 'fold-scale'")
    assert "known:" in message and "other" in message


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import plug_that_is_not_there", ModuleNotFoundError),
        ("from os import nothing_like_this", ImportError),
        ("x = 1", AttributeError),
        ("this is no python", SyntaxError),
        ("1 / 0", ZeroDivisionError),
    ],
)
def test_a_broken_plug_in_is_named_and_breaks_nothing_else(site, source, cause):
    install(
        site,
        "plug-broken",
        {"broken": "plug_broken:Thing", "fine": "plug_fine:Fine"},
        {"plug_broken": source, "plug_fine": "class Fine: ..."},
    )
    known = registry()
    with pytest.raises(RegistryError) as caught:
        known.get("broken")
    assert isinstance(caught.value.__cause__, cause)
    assert "pass 'broken', entry point plug_broken:Thing (plug-broken 1.0) cannot be loaded" in str(
        caught.value
    )
    assert known.get("fine").__name__ == "Fine"


def test_a_plug_in_that_lacks_an_extra_says_so_itself(site):
    source = "from graphopt.errors import MissingExtraError as E\nraise E('pip install graphopt[torch]')"
    install(site, "plug-extra", {"extra": "plug_extra:Thing"}, {"plug_extra": source})
    with pytest.raises(MissingExtraError, match=r"pip install graphopt\[torch\]"):
        registry().get("extra")


def test_an_object_that_calls_itself_otherwise_is_refused(site):
    install(site, "plug-one", {"one": "plug_one:One"}, {"plug_one": "class One:\n    name = 'two'\n"})
    with pytest.raises(RegistryError, match="entry point plug_one:One .*calls itself 'two'"):
        registry().get("one")


class Mine:
    name = "mine"


class Other:
    name = "mine"


def test_register_as_a_call_and_as_a_decorator():
    known = registry()
    assert known.register(Mine) is Mine

    @known.register
    class Second:
        name = "second"

    @known.register(name="third")
    def third():
        """A backend may be a function."""

    assert known.get("mine") is Mine
    assert known.get("second") is Second
    assert known.get("third") is third
    assert {"mine", "second", "third"} <= set(known.names())
    assert known.owner("mine") == f"{__name__}:Mine (registered in this process)"


def test_registering_a_taken_name_names_both_owners_unless_replaced():
    known = registry()
    known.register(Mine)
    with pytest.raises(RegistryError) as caught:
        known.register(Other)
    assert f"{__name__}:Mine" in str(caught.value) and f"{__name__}:Other" in str(caught.value)
    assert "replace=True" in str(caught.value)
    assert known.get("mine") is Mine
    known.register(Other, replace=True)
    assert known.get("mine") is Other


def test_registering_the_name_of_an_entry_point_is_a_clash_unless_replaced(site):
    install(site, "plug-one", {"mine": "plug_one:One"}, {"plug_one": ""})
    known = registry()
    with pytest.raises(RegistryError, match=r"plug_one:One \(plug-one 1.0\) and by .*Mine \(registered"):
        known.register(Mine)
    known.register(Mine, replace=True)
    assert known.get("mine") is Mine
    assert "plug_one" not in sys.modules


def test_running_a_notebook_cell_again_replaces_its_own_class():
    def cell():
        class Cell:
            name = "cell"

        return Cell

    known = registry()
    first, second = known.register(cell()), known.register(cell())
    assert first is not second
    assert known.get("cell") is second


def test_an_object_without_a_name_needs_one():
    with pytest.raises(RegistryError, match="has no attribute `name`"):
        registry().register(object())


def test_a_name_that_no_pipeline_can_say_and_an_object_of_a_pass_are_refused():
    class Spaced(GraphPass):
        name = "two words"

        def run(self, context): ...

    with pytest.raises(RegistryError, match="'two words' cannot be written in a pipeline: expected letters"):
        Registry("graphopt.test", "pass").register(Spaced)
    with pytest.raises(RegistryError, match="is an object: register its class, .*Spaced"):
        graphopt.register(Spaced())


def test_a_name_other_than_the_objects_own_is_refused():
    with pytest.raises(RegistryError, match="calls itself 'mine'"):
        registry().register(Mine, name="yours")


def test_registries_do_not_share_what_is_registered():
    registry().register(Mine)
    assert "mine" not in registry()


def test_the_default_registries_are_made_once_and_apart():
    assert passes() is passes() and backends() is backends()
    assert (passes().group, backends().group) == ("graphopt.passes", "graphopt.backends")


def test_listing_imports_no_plug_in_and_nothing_heavy(site):
    install(site, "plug-loud", {"loud": "plug_loud:Loud"}, {"plug_loud": "raise SystemExit('imported')"})
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from graphopt.pipeline.registry import passes, backends\n"
        "assert 'loud' in passes().names(); backends().names(); passes().owner('loud')\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'onnx_ir', 'jax', 'rich', 'numpy', 'plug_loud'}\n"
        "own = ('graphopt.passes', 'graphopt.backends')\n"
        "print(sorted(m for m in sys.modules if m in heavy or m.startswith(own)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
