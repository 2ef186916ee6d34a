"""What the packaging and `.ci/run` rely on: package names, light imports, the README's commands."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
HEAVY = {"torch", "timm", "zarr", "kornia", "torchvision", "pyarrow"}


def python(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def setuptools_table():
    return tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]


def packages_of_tree(folder: str, package: str) -> set[str]:
    """Every folder with Python files, by the dotted name under which it is installed."""
    inside = {file.parent.relative_to(REPO / folder) for file in (REPO / folder).rglob("*.py")}
    return {".".join((package, *path.parts)) for path in inside}


def test_package_list_equals_the_tree():
    listed = set(setuptools_table()["packages"])
    assert listed == packages_of_tree("loffta", "loffta") | packages_of_tree("cli", "loffta_cli") | {"loffta_pipelines"}


def test_every_pipeline_file_is_packaged():
    """A file that no pattern matches would be missing from the wheel alone; benchmarks stay outside."""
    patterns = setuptools_table()["package-data"]["loffta_pipelines"]
    packaged = {path for pattern in patterns for path in (REPO / "pipelines").glob(pattern)}
    assert packaged == {file for kind in ("yaml", "sbatch") for file in (REPO / "pipelines").rglob(f"*.{kind}")}


@pytest.mark.parametrize("folder", ["loffta", "cli"])
def test_every_package_has_an_init(folder):
    bare = {file.parent for file in (REPO / folder).rglob("*.py")} - {
        file.parent for file in (REPO / folder).rglob("__init__.py")
    }
    assert not bare


def test_cli_is_installed_as_loffta_cli():
    assert setuptools_table()["package-dir"] == {"loffta_cli": "cli", "loffta_pipelines": "pipelines"}


def test_the_name_cli_is_refused_with_its_remedy():
    result = python("-c", "import cli", cwd=REPO)
    assert result.returncode == 1
    assert "ImportError: `cli` is loffta's source folder" in result.stderr
    assert "remedy: import loffta_cli" in result.stderr
    assert "pip install -e ." in result.stderr


@pytest.mark.smoke
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option, tmp_path):
    code = (
        "import json, sys\n"
        "from loffta_cli.main import COMMANDS, main\n"
        f"code = main(['{option}'])\n"
        "print(json.dumps([code, sorted(sys.modules), sorted(COMMANDS)]))"
    )
    result = python("-c", code, cwd=tmp_path)
    code, modules, commands = json.loads(result.stdout.splitlines()[-1])
    assert code == 0
    assert HEAVY.isdisjoint(modules)
    assert {f"loffta_cli.{name}" for name in commands}.isdisjoint(modules)


@pytest.mark.smoke
def test_runs_as_a_module(tmp_path):
    import loffta

    result = python("-m", "loffta_cli", "--version", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"loffta {loffta.__version__}\n", "")


README = """
```bash
# a comment
loffta one --a 1   # explained
    loffta indented is no command
loffta two \\
    --b "2 3"
```
```console
$ loffta three
loffta its output
$ other
```
```text
loffta extract YOUR_FOLDER
```
loffta in prose
"""


def run_readme(markdown: str, tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Runs `.ci/readme-commands` on `markdown` with a `loffta` that is the shell lines `script`."""
    (tmp_path / "README.md").write_text(markdown)
    (tmp_path / "loffta").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "loffta").chmod(0o755)
    return subprocess.run(
        [sys.executable, REPO / ".ci" / "readme-commands", "README.md"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )


def test_readme_commands_run_in_order(tmp_path):
    result = run_readme(README, tmp_path, """printf '<%s>' "$@" >> calls; echo >> calls""")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "calls").read_text().splitlines() == ["<one><--a><1>", "<two><--b><2 3>", "<three>"]
    assert "$ loffta two --b" in result.stdout


def test_the_first_readme_command_that_fails_ends_the_run(tmp_path):
    result = run_readme(README, tmp_path, """echo "$1" >> calls; [ "$1" = one ] || exit 3""")
    assert result.returncode == 3
    assert (tmp_path / "calls").read_text().split() == ["one", "two"]


def test_a_readme_without_commands_is_an_error(tmp_path):
    result = run_readme("# loffta\n", tmp_path, "true")
    assert result.returncode == 1
    assert "no `loffta` line" in result.stderr
