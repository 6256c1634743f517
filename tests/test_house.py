"""The rooms of the repository: what may import what, and what a script does not load before it needs it."""
import argparse
import ast
import importlib
import subprocess
import sys

import pytest
from conftest import ROOT

METHODS = {"softmask", "hoyer", "slimming", "magnitude", "reweighted"}
ROOMS = {*METHODS, "common", "deploy", "results", "benchmarks"}
FILES = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] in ROOMS]


def imported(path):
    """The repository's files that this one imports, from inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            file = ROOT.joinpath(*name.split("."))
            possible = (file.with_suffix(".py"), file / "__init__.py", path.with_name(f"{name}.py"))
            found |= {f for f in possible if f in FILES and f != path}
    return found


GRAPH = {path: imported(path) for path in FILES}


def reachable(path):
    seen, todo = set(), [*GRAPH[path]]
    while todo:
        if (file := todo.pop()) not in seen:
            seen.add(file)
            todo += GRAPH[file]
    return seen


def test_no_two_files_import_each_other():
    assert GRAPH[ROOT / "common" / "run.py"] >= {ROOT / "common" / "files" / "checkpoint.py"}         # the graph is one
    assert not [str(path) for path in FILES if path in reachable(path)]


def test_methods_share_only_common():
    for path, files in GRAPH.items():
        room = path.relative_to(ROOT).parts[0]
        others = {file.relative_to(ROOT).parts[0] for file in files} - {room}
        if room in METHODS or room == "deploy":
            assert others <= {"common"}, path
        if room == "common":
            assert not others, path


def test_each_method_fine_tunes_with_common_alone():
    """Who reads a finetune.py needs that file, common, and its method's networks, recipe, quantizers and reports."""
    for path in ROOT.glob("*/finetune.py"):
        own = {file.name for file in GRAPH[path] if file.parent == path.parent}
        assert own <= {"networks.py", "recipe.py", "quantizers.py", "reports.py"}, f"{path} needs {own}"


HELP = """
import contextlib, io, os, runpy, sys, torch
for script in sys.argv[1:]:
    if not os.fork():
        sys.argv, said = [script, "--help"], io.StringIO()
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
            runpy.run_path(script, run_name="__main__")
        loaded = sys.modules.keys() & {"matplotlib", "torchvision", "onnx"}
        os._exit(not said.getvalue().startswith("usage:") or bool(loaded))               # it did nothing else
    assert os.wait()[1] == 0, script
"""


def test_help_loads_neither_matplotlib_nor_torchvision_nor_onnx():
    """In forks of a process that has loaded torch alone."""
    scripts = ("slimming/eval.py", "slimming/main.py", "hoyer/eval.py", "common/compute_flops.py", "deploy/export.py",
               "deploy/benchmark.py", "benchmarks/loader.py", "benchmarks/softmask_step.py", "results/make_plots.py")
    done = subprocess.run([sys.executable, "-c", HELP, *(ROOT / script for script in scripts)], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


def test_every_script_puts_the_repository_in_front_of_its_imports(monkeypatch):
    """Looked at here, since tests run scripts in forks of a process that has imported all of it."""
    scripts = [path for path in FILES if '__name__ == "__main__"' in path.read_text()]
    for path in scripts:
        monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(ROOT)])
        body = ast.parse(path.read_text()).body
        last = next(i for i, node in enumerate(body) if "sys.path.insert" in ast.unparse(node))
        head = [node for node in body[:last + 1] if not isinstance(node, ast.ImportFrom) or node.module == "pathlib"]
        exec(compile(ast.Module(head, []), path, "exec"), {"__file__": str(path)})
        assert sys.path[0] == str(ROOT), path
        for node in body[:last]:
            assert not isinstance(node, ast.ImportFrom) or node.module.partition(".")[0] not in ROOMS, path
        assert "cli.script(" in ast.unparse(body[-1]) or path.name == "make_tables.py", path     # one line on an error
    assert len(scripts) > 40


def test_every_script_of_a_method_takes_its_input_as_model_and_explains_its_flags(monkeypatch):
    asked = []
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda parser, file=None: asked.append(parser))
    scripts = [path.relative_to(ROOT) for path in FILES if path.relative_to(ROOT).parts[0] in METHODS
               and "def main(argv=None)" in path.read_text()]
    for script in scripts:
        with pytest.raises(SystemExit):
            importlib.import_module(".".join(script.with_suffix("").parts)).main(["--help"])
        parser = asked.pop()
        parser.format_help()                                 # a bare % in a help text ends in a traceback
        flags = {name: action for action in parser._actions for name in action.option_strings}
        assert "--model" in flags, script
        for name in {"--epochs", "--batch-size", "--lr", "--seed", "--criterion"} & flags.keys():
            assert flags[name].help, f"{script} {name}"
        if default := getattr(flags.get("--epochs"), "default", None):
            assert f"default: {default})" in flags["--epochs"].help, script
    assert len(scripts) > 30


def test_checkpoints_are_loaded_without_running_code():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and k.value.value is True for k in node.keywords), path


def test_comparing_a_network_with_its_file_does_not_load_torch_s_compiler():
    """torch initializes a network without memory by its compiler, which takes a second to import."""
    code = ("import sys; from common import models; [models.sketch(arch) for arch in models.ARCHS]; "
            "sys.exit('torch._dynamo' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
