"""The command line: results on standard output, the rest on standard error, exit codes, stable JSON."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import graphopt
from graphopt.pipeline import registry
from graphopt.tools.main import app, main


def conv_bn(seed=0, *, training=False):
    """y = relu(batch_norm(conv(x))); node names hold what rich would take for markup."""
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)),
        "scale": rng.standard_normal(4),
        "shift": rng.standard_normal(4),
        "mean": rng.standard_normal(4),
        "var": rng.uniform(0.5, 2.0, 4),
    }
    normalised = ["b", "m2", "v2"] if training else ["b"]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv[red]", pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization", ["c", "scale", "shift", "mean", "var"], normalised, name="bn[/red]",
            training_mode=int(training),
        ),
        helper.make_node("Relu", ["b"], ["y"], name="relu"),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 8, "width"])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in[bold].onnx"
    onnx.save(conv_bn(), path)
    return path


@pytest.fixture
def call(monkeypatch):
    """Run the command line; errors of the project pass through as exceptions."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def op_types(path):
    return [n.op_type for n in onnx.load(path).graph.node]


def error_of(capsys, *arguments):
    """Exit code and standard error of the real entry point; standard output must stay empty."""
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert captured.out == ""
    return exit_.value.code, captured.err


# ---- the whole program ---------------------------------------------------------------------------


def test_the_module_runs_as_a_program(source, tmp_path):
    output = tmp_path / "out.onnx"
    command = [sys.executable, "-m", "graphopt", "run", source, "-o", output, "-p", "fuse-conv-bn", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    assert done.stderr == f"wrote {output}\n"
    assert json.loads(done.stdout)["output"] == str(output)
    assert op_types(output) == ["Conv", "Relu"]


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from graphopt.tools.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'onnxruntime', 'onnx', 'onnx_ir', 'numpy', 'jax'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)

    assert done.stdout.splitlines()[-1] == "[]"
    for name in ("run", "passes", "dump", "explain", "experts", "bench", "compile", "fetch"):
        assert f"\n  {name} " in done.stdout


def test_the_core_does_not_import_the_tools():
    code = "import sys, graphopt.compiler; print(any(m.startswith('graphopt.tools') for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)

    assert done.stdout == "False\n"


def test_the_version_is_the_packages(call):
    from importlib.metadata import version

    assert call("--version").stdout == f"graphopt {version('graphopt')}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["run"],
        ["run", "x.onnx", "--verify", "much"],
        ["dump", "--what"],
        ["bench", "x.onnx", "--seed", "-1"],
    ],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    code, stderr = error_of(capsys, *arguments)

    assert code == 2
    assert "Usage: graphopt" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dump", "[bold]missing.onnx"], "error: [bold]missing.onnx: no such file"),
        (
            ["run", "{source}", "-p", "fuse-conv-bm"],
            "unknown pass 'fuse-conv-bm' (did you mean 'fuse-conv-bn'",
        ),
        (["run", "{source}", "-p", "clean-up{"], "pipeline text, position 9"),
        (["run", "{source}", "--target", "tpu"], "unknown backend 'tpu'"),
        (["run", "{source}", "--print-after", "cleanup"], "did you mean 'clean-up'?"),
        (["run", "{source}", "-o", "no/such/folder.onnx"], "the folder no/such does not exist"),
        (["passes", "nothing"], "unknown pass 'nothing'"),
        (["explain", "{source}", "--rule", "conv-batch-nor"], "(did you mean 'conv-batch-norm'"),
        (
            ["explain", "{source}", "--rule", "conv-batch-norm", "--node", "bn[/re]"],
            "did you mean 'bn[/red]'",
        ),
        (
            ["bench", "{source}", "--dim", "m=2"],
            "no input has a dimension 'm'; open dimensions: n, width",
        ),
        (["bench", "{source}", "--dim", "m"], "--dim m: expected NAME=N"),
        (["bench", "{source}", "--dim", "n=2", "--dim", "n=3"], "--dim n=3: n is 2 already; give one size for it"),
        (["run", "{source}", "--dump-dir", "{source}"], "expected a folder for dumps, or a new one's path"),
        (["run", "{source}", "--dump-dir", "{source}/new"], "expected a folder for dumps, or a new one's path"),
    ],
)
def test_a_refusal_is_one_message_on_standard_error_and_exits_with_1(arguments, message, source, capsys):
    code, stderr = error_of(capsys, *(a.replace("{source}", str(source)) for a in arguments))

    assert code == 1
    assert stderr.startswith("error: ")
    assert message in stderr
    assert "Traceback" not in stderr


# ---- run -----------------------------------------------------------------------------------------


def test_run_writes_the_optimised_model_and_prints_the_report(call, source, tmp_path):
    output = tmp_path / "out.onnx"
    result = call("run", source, "-o", output)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 5)).astype(np.float32)

    assert op_types(output) == ["Conv", "Relu"]
    before, after = (graphopt.lower(p, optimization="off")(x)[0] for p in (source, output))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    assert "in[bold].onnx: clean-up,fuse-conv-bn,clean-up" in result.stdout
    assert "conv-batch-norm" in result.stdout
    assert result.stderr == f"wrote {output}\n"


def test_a_narrow_terminal_cuts_no_number_off(call, source, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    for arguments in (["run", source, "--no-progress"], ["bench", source, source, "--rounds", 1]):
        printed = call(*arguments).stdout
        assert "\x1b[" in printed and "…" not in printed.replace("has other users (…)", "")


def test_run_without_an_output_writes_nothing(call, source, tmp_path):
    call("run", source)

    assert list(tmp_path.iterdir()) == [source]


def test_the_target_decides_what_may_be_written(call, source, tmp_path):
    call("run", source, "-o", tmp_path / "out.onnx", "--target", "onnxruntime")

    assert op_types(tmp_path / "out.onnx") == ["FusedConv"]


def test_the_json_report_has_the_documented_keys(call, source):
    report = json.loads(call("run", source, "--report", "json", "-p", "fuse-conv-bn").stdout)

    assert set(report) == {
        "input", "output", "model", "pipeline", "verify", "coverage", "seconds", "notes", "passes",
    }  # fmt: skip
    assert (report["input"], report["output"], report["verify"]) == (str(source), None, "match")
    (record,) = report["passes"]
    assert set(record) == {
        "pass", "where", "before", "after", "rules", "applications", "seconds", "notes", "spending",
    }  # fmt: skip
    (application,) = record["applications"]
    assert application["id"] == "fuse-conv-bn/conv-batch-norm#1"
    assert application["status"] == "kept"


@pytest.mark.parametrize("option", [("--limit", 0), ("--skip", "fuse-conv-bn/conv-batch-norm#1")])
def test_limit_and_skip_hold_applications_back(call, source, tmp_path, option):
    call("run", source, "-o", tmp_path / "out.onnx", "-p", "fuse-conv-bn", *option)

    assert op_types(tmp_path / "out.onnx") == ["Conv", "BatchNormalization", "Relu"]


@pytest.mark.parametrize("level", ["off", "structure", "match", "model"])
def test_every_level_of_verification_can_be_asked_for(call, source, level):
    report = json.loads(call("run", source, "--json", "--verify", level, "-p", "fuse-conv-bn").stdout)

    assert report["verify"] == level
    assert report["coverage"] == (0.0 if level in ("off", "structure") else 1.0)


def test_what_passes_do_can_be_watched(call, source, tmp_path):
    printed = call("run", source, "-p", "fuse-conv-bn", "--print-after", "fuse-conv-bn", "--json")
    changed = call("run", source, "-p", "fuse-conv-bn", "--print-after-change", "--json")
    call("run", source, "-p", "fuse-conv-bn", "--dump-dir", tmp_path / "dumps", "--no-progress")

    assert printed.stderr.startswith("# after fuse-conv-bn\nmain (onnx, 2 nodes)")
    assert "\n-" in changed.stderr and "batch_norm" in changed.stderr
    assert json.loads(printed.stdout)["pipeline"] == json.loads(changed.stdout)["pipeline"] == "fuse-conv-bn"
    assert [p.name for p in sorted((tmp_path / "dumps").iterdir())] == [
        "000_input.txt",
        "001_fuse-conv-bn.txt",
    ]


def test_the_input_is_never_overwritten_by_whatever_name(source, tmp_path, capsys):
    before = source.read_bytes()
    link = tmp_path / "link.onnx"
    link.symlink_to(source)
    for output in (source, tmp_path / "." / source.name, link):
        code, stderr = error_of(capsys, "run", source, "-o", output)
        assert code == 1
        assert "is an input, which is never overwritten" in stderr
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "m.onnx", "-p", "fuse-conv-bn{forward=2}", "-o"],
        ["verify", "m.onnx", "m.onnx", "--prove", "--counterexample"],
        ["experts", "m.onnx", "--calibration", "none.npz", "--svg"],
    ],
)
def test_no_command_puts_a_file_in_the_place_of_a_device(arguments, tmp_path, capsys, monkeypatch):
    """It is said before anything else is done."""
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_bn(), "m.onnx")
    os.mkfifo("pipe")
    code, stderr = error_of(capsys, *arguments, "pipe")
    assert code == 1 and "got a device or a pipe" in stderr
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("command", ["run", "bench"])
def test_what_the_terminal_cannot_show_is_escaped(command, tmp_path):
    onnx.save(conv_bn(), tmp_path / "mödel.onnx")
    line = [sys.executable, "-X", "utf8=0", "-m", "graphopt", command, "mödel.onnx"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert b"m\\xf6del.onnx" in done.stdout


def test_what_the_report_goes_to_is_not_replaced_by_the_model(source, tmp_path):
    """Nor is a link to it: a root that gives /dev/stdout would leave a model there."""
    link = tmp_path / "out"
    link.symlink_to("/dev/fd/1")
    with (tmp_path / "report.txt").open("w") as report:
        command = [sys.executable, "-m", "graphopt", "run", source, "-o", link]
        done = subprocess.run(command, stdout=report, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "standard output or standard error goes there" in done.stderr
    assert link.is_symlink() and (tmp_path / "report.txt").read_text() == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "m.onnx", "--calibration", "inputs.npz", "-o", "inputs.npz"],
        ["experts", "m.onnx", "--calibration", "inputs.npz", "--svg", "m.onnx"],
        ["experts", "m.onnx", "--calibration", "inputs.npz", "--svg", "inputs.npz"],
        ["verify", "m.onnx", "m.onnx", "--prove", "--counterexample", "m.onnx"],
        ["verify", "m.onnx", "m.onnx", "--inputs", "inputs.npz", "--counterexample", "inputs.npz"],
    ],
)
def test_no_command_overwrites_what_it_reads(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_bn(), "m.onnx")
    np.savez("inputs.npz", x=np.zeros((4, 3, 8, 16), np.float32))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, stderr = error_of(capsys, *arguments)
    assert code == 1 and f"{arguments[-1]} is an input, which is never overwritten" in stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_that_holds_the_inputs_weights_is_not_overwritten(tmp_path, capsys):
    external = tmp_path / "external.onnx"
    onnx.save(conv_bn(), external, save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    weights = (tmp_path / "out.onnx.data").read_bytes()

    for output in ("out.onnx", "out.onnx.data"):
        code, stderr = error_of(capsys, "run", external, "-o", tmp_path / output)
        assert code == 1
        assert "out.onnx.data holds weights of an input" in stderr
    assert (tmp_path / "out.onnx.data").read_bytes() == weights


@pytest.mark.parametrize("place", ["initialiser", "body", "attribute", "function"])
def test_weights_of_the_input_are_never_overwritten_wherever_the_model_has_them(tmp_path, capsys, place):
    """`place` is where the tensor is that lies in the file."""
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32), "w")
    (tmp_path / "w.data").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="w.data")
    x, y, p, q = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [6]) for name in "xypq")
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    constant = [helper.make_node("Constant", [], ["w"], value=weight), helper.make_node("Add", ["x", "w"], ["y"])]
    adding = {
        v.name: helper.make_graph([helper.make_node("Add", ["x", "w"], [v.name])], v.name, [], [v], [weight])
        for v in (p, q)
    }
    choice = helper.make_node("If", ["c"], ["y"], then_branch=adding["p"], else_branch=adding["q"])
    condition = numpy_helper.from_array(np.array(True), "c")
    nodes, stored, functions = {
        "initialiser": (constant[1:], [weight], []),
        "body": ([choice], [condition], []),
        "attribute": (constant, [], []),
        "function": (
            [helper.make_node("Shift", ["x"], ["y"], domain="own")],
            [],
            [helper.make_function("own", "Shift", ["x"], ["y"], constant, imports[:1])],
        ),
    }[place]
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    before = (tmp_path / "w.data").read_bytes()
    for output in ("w.data", "w"):
        code, stderr = error_of(capsys, "run", tmp_path / "m.onnx", "-o", tmp_path / output)
        assert code == 1 and "holds weights of an input" in stderr
    assert (tmp_path / "w.data").read_bytes() == before


def test_another_file_is_replaced(call, source, tmp_path):
    output = tmp_path / "out.onnx"
    output.write_bytes(b"old")
    call("run", source, "-o", output)

    assert op_types(output) == ["Conv", "Relu"]


# ---- passes, dump, explain -----------------------------------------------------------------------


def test_passes_are_listed_with_their_owners(call):
    rows = {row["name"]: row["owner"] for row in json.loads(call("passes", "--json").stdout)}

    assert rows["fuse-conv-bn"].startswith("graphopt.passes.fuse_conv_bn:FuseConvBn (graphopt ")
    table = call("passes").stdout
    assert all(name in table for name in rows)


def test_what_is_no_pass_is_not_shown(capsys, monkeypatch):
    monkeypatch.setitem(registry.passes()._registered, "odd", replace(registry.passes()._claim("bf16"), load=lambda: 3))
    assert error_of(capsys, "passes", "odd") == (1, "error: 'odd' is not a pass: expected a subclass of Pass, got 3\n")


def test_one_pass_is_shown_with_options_contract_and_mathematics(call):
    details = json.loads(call("passes", "fuse-conv-bn", "--json").stdout)
    page = call("passes", "fuse-conv-bn").stdout

    assert set(details) == {
        "name", "kind", "owner", "doc", "contract", "requires", "ensures", "options", "rules",
    }  # fmt: skip
    rule = next(r for r in details["rules"] if r["name"] == "conv-batch-norm")
    assert rule["contract"] == "rounding(factor=8)"
    assert rule["doc"].splitlines()[0] in page
    assert details["contract"] in page
    assert all(f"  {o['name']}: {o['type']}, default {o['default']}" in page for o in details["options"])


def test_a_dump_is_text_json_or_dot(call, source):
    text = call("dump", source).stdout
    data = json.loads(call("dump", source, "--json").stdout)
    dot = call("dump", source, "--format", "dot").stdout

    assert text.startswith("main (onnx, 3 nodes)\n")
    assert "%y = relu(%b) : float32[n,4,8,width] @relu" in text
    assert set(data) == {"storage", "main", "functions"}
    assert [n["op"] for n in data["main"]["nodes"]] == ["conv", "batch_norm", "relu"]
    assert data == json.loads(call("dump", source, "--format", "json").stdout)
    assert dot.startswith("digraph {") and dot.endswith("}\n")


def test_explain_says_where_a_rule_applies(call, source):
    data = json.loads(call("explain", source, "--rule", "fuse-conv-bn/conv-batch-norm", "--json").stdout)

    assert (data["file"], data["rule"]) == (str(source), "fuse-conv-bn/conv-batch-norm")
    (found,) = data["explanations"]
    assert set(found) == {"rule", "node", "matched", "reason", "stopped_at", "score"}
    assert (found["node"], found["matched"]) == ("bn[/red]", True)


def test_explain_says_why_a_rule_does_not_apply(call, tmp_path):
    path = tmp_path / "training.onnx"
    onnx.save(conv_bn(training=True), path)

    table = call("explain", path, "--rule", "conv-batch-norm").stdout

    assert "bn[/red]" in table
    assert "training" in table
    assert " no " in table


def test_explain_can_be_asked_about_one_node_by_its_name_or_that_of_its_output(call, source):
    asked = [
        json.loads(call("explain", source, "--rule", "conv-batch-norm", "--node", name, "--json").stdout)
        for name in ("relu", "y")
    ]

    assert asked[0] == asked[1]
    (found,) = asked[0]["explanations"]
    assert (found["node"], found["matched"]) == ("relu", False)


def test_explain_says_when_there_is_no_node_to_ask_about(call, source):
    call("run", source, "-o", source.parent / "out.onnx")

    assert (
        "no node of the op batch_norm"
        in call("explain", source.parent / "out.onnx", "--rule", "conv-batch-norm").stdout
    )


def test_explain_of_a_pass_without_rules_says_what_it_does_and_notes(call, tmp_path):
    """A pass that finds nothing says so; its name may be that of what it applies."""
    path = tmp_path / "plain.onnx"
    onnx.save(conv_bn(), path)

    assert "lower-moe finds nothing in" in call("explain", path, "--rule", "lower-moe").stdout
    data = json.loads(call("explain", path, "--rule", "lower-moe/picked-experts", "--json").stdout)
    assert (data["rule"], data["explanations"], data["notes"]) == ("lower-moe/picked-experts", [], [])


# ---- bench ---------------------------------------------------------------------------------------


def test_bench_compares_with_the_first_model(call, source):
    output = source.parent / "out.onnx"
    call("run", source, "-o", output)
    data = json.loads(call("bench", source, output, "--rounds", 3, "--dim", "n=2", "--json").stdout)
    table = call("bench", source, output, "--rounds", 1).stdout

    assert set(data) == {"threads", "rounds", "optimization", "inputs", "models"}
    assert data["inputs"] == {"x": {"dtype": "float32", "shape": [2, 3, 8, 16]}}
    first, second = data["models"]
    assert set(first) == {
        "file", "median", "low", "high", "speedup", "speedup_low", "speedup_high", "difference",
    }  # fmt: skip
    assert (first["file"], first["speedup"], first["difference"]) == (str(source), 1.0, 0.0)
    assert second["difference"] < 1e-5
    assert "in[bold].onnx" in table


def test_bench_shows_that_models_differ(call, source):
    other = source.parent / "other.onnx"
    onnx.save(conv_bn(seed=1), other)

    first, second = json.loads(call("bench", source, other, "--rounds", 1, "--json").stdout)["models"]
    assert second["difference"] > 0.1


def test_bench_says_how_to_choose_other_sizes_when_a_model_does_not_run(tmp_path, capsys):
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.int64([3, 5]), "shape")],
    )
    path = tmp_path / "fifteen.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)

    code, stderr = error_of(capsys, "bench", path)
    assert code == 1
    assert "does not run on inputs of the shapes x [1, 16]" in stderr
    assert "--dim NAME=N (open dimensions: x.1)" in stderr
    with pytest.raises(SystemExit) as exit_:
        main(["bench", str(path), "--dim", "x.1=15"])
    assert exit_.value.code == 0


@pytest.mark.parametrize("size", [10**14, 10**30])
def test_bench_refuses_sizes_for_which_there_is_no_memory(source, capsys, size):
    code, stderr = error_of(capsys, "bench", source, "--dim", f"n={size}")
    assert code == 1
    assert f"x [{size}, 3, 8, 16] cannot be made" in stderr and "choose smaller sizes with --dim" in stderr


def test_a_failure_of_the_file_system_is_one_message_too(source, tmp_path, capsys):
    code, stderr = error_of(capsys, "run", source, "--dump-dir", source)
    assert code == 1
    assert stderr.startswith("error: ") and str(source) in stderr


def test_bench_refuses_models_with_other_inputs(source, tmp_path, capsys):
    other = conv_bn()
    other.graph.input[0].name = other.graph.node[0].input[0] = "z"
    onnx.save(other, tmp_path / "other.onnx")

    code, stderr = error_of(capsys, "bench", source, tmp_path / "other.onnx")
    assert code == 1
    assert "other.onnx takes other inputs than" in stderr
