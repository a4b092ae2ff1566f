"""The set-up files agree: pyproject, constraints, environment, Makefile, README."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import distributions, entry_points
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13")
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}
# Left to pip, which installs it last: conda-forge's package is named faiss, not faiss-cpu.
NOT_FROM_CONDA = {"faiss-cpu", "bm25s", "vector-quantize-pytorch"}


def _requirements() -> dict[str, Requirement]:
    """Every requirement of the project and its extras, by name."""
    lines = list(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        lines += extra
    found = map(Requirement, lines)
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def _constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def _pins(python: str) -> dict[str, str]:
    """The pinned versions in force on Linux with one Python version."""
    here = {**default_environment(), "python_version": python, "python_full_version": f"{python}.9"}
    here |= {"sys_platform": "linux", "platform_machine": "x86_64", "os_name": "posix"}
    pins = {}
    for pin in _constraints():
        if pin.marker is None or pin.marker.evaluate(here):
            name = canonicalize_name(pin.name)
            assert name not in pins, f"{name} is pinned twice for Python {python}"
            pins[name] = str(pin.specifier).removeprefix("==")
    return pins


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned_within_its_range(python):
    pins = _pins(python)
    for name, requirement in _requirements().items():
        assert name in pins, f"{name} has no pin for Python {python}"
        assert pins[name] in requirement.specifier, f"{name}=={pins[name]} against {requirement}"


def test_constraints_are_exact_and_name_no_local_build():
    for pin in _constraints():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin


@pytest.mark.skipif(
    Path(sys.prefix).resolve() != ROOT / ".venv",
    reason="an environment that make did not set up may have other versions in range",
)
def test_the_installed_environment_is_the_pinned_one():
    pins = _pins("{}.{}".format(*sys.version_info))
    here = distributions(path=[sysconfig.get_path("purelib")])
    installed = {canonicalize_name(d.metadata["Name"]): d.version for d in here}
    shared = installed.keys() & pins.keys()
    assert shared >= {"torch", "numpy", "pytest", "papermill"}
    # 2.13.0+cpu is a build of 2.13.0
    different = {n for n in shared if installed[n].partition("+")[0] != pins[n]}
    assert not different, "installed and pinned differ"


def test_python_range():
    supported = SpecifierSet(PROJECT["requires-python"])
    assert all(f"{python}.0" in supported for python in PYTHONS)
    assert "3.10.9" not in supported
    assert "3.14.0" not in supported


def test_entry_point():
    (script,) = entry_points(group="console_scripts", name="minisearch")
    assert script.value == PROJECT["scripts"]["minisearch"]
    assert callable(script.load())


def test_conda_environment_has_the_ranges_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *conda, last = environment["dependencies"]
    assert last == {"pip": ["-e .[book,test]"]}
    found = {}
    for line in conda:
        requirement = Requirement(line)
        found[CONDA_NAMES.get(requirement.name, requirement.name)] = requirement.specifier
    assert found.pop("python") == SpecifierSet(PROJECT["requires-python"])
    found.pop("pip")
    wanted = {name: requirement.specifier for name, requirement in _requirements().items()}
    assert found == {name: wanted[name] for name in found}
    runtime = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert runtime - NOT_FROM_CONDA <= found.keys()


# --- make -----------------------------------------------------------------------------------

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def _make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("make") or "make", "-s", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment, "MAKEFLAGS": "", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def _script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def _targets() -> set[str]:
    (phony,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.M)
    return set(phony.split())


def test_the_readme_names_targets_that_exist():
    named = set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text()))
    named -= {"and"}
    assert {"book", "test"} <= named <= _targets()


@needs_make
def test_help_names_every_target_a_reader_uses():
    said = _make().stdout
    assert {name for name in _targets() if f"make {name}" in said} == {
        "book",
        "test",
        "lab",
        "clean",
    }


@needs_make
def test_make_leaves_apt_alone_when_told_to(tmp_path):
    calls = tmp_path / "calls"
    for tool in ("apt-get", "sudo", "env", "id"):
        _script(tmp_path / tool, f'echo "$0 $*" >>{calls}')
    for tool in ("sh", "sed", "uname"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    assert _make("APT=0", "chromium", PATH=str(tmp_path)).returncode == 0
    assert not calls.exists()
    assert _make("chromium", PATH=str(tmp_path)).returncode == 0
    assert "apt-get install" in calls.read_text()


@needs_make
def test_make_says_what_is_missing_without_a_suitable_python(tmp_path):
    _script(tmp_path / "python3", "echo 'shim: python3: command not found' >&2; exit 127")
    for tool in ("sh", "sed", "tail", "uname"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    venv = tmp_path / "venv"
    done = _make(f"VENV={venv}", f"{venv}/bin/python", PATH=str(tmp_path))
    assert done.returncode == 2
    assert "no usable Python" in done.stderr
    assert "shim: python3: command not found" in done.stderr
    assert "Needed: Python 3.11, 3.12 or 3.13" in done.stderr
    assert not venv.exists()


@needs_make
def test_make_takes_the_first_python_that_works(tmp_path):
    calls = tmp_path / "calls"
    _script(tmp_path / "python3", "exit 1")
    _script(tmp_path / "python3.13", f'echo "$0 $*" >>{calls}')
    _script(tmp_path / "python3.12", f'echo "$0 $*" >>{calls}')
    venv = tmp_path / "venv"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = _make(f"VENV={venv}", f"{venv}/bin/python", PATH=path)
    assert done.returncode == 0, done.stderr
    made = calls.read_text()
    assert f"python3.13 -m venv --clear {venv}" in made
    assert "python3.12" not in made
    _make(f"VENV={venv}", f"PYTHON={tmp_path}/python3.12", f"{venv}/bin/python", PATH=path)
    assert f"python3.12 -m venv --clear {venv}" in calls.read_text()


@needs_make
def test_a_linux_machine_without_a_card_never_gets_cuda_by_accident(tmp_path):
    calls = tmp_path / "calls"
    _script(tmp_path / "uname", "echo Linux")
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    # A pip that finds nothing anywhere, and notes where it was told to look.
    finds_nothing = f'case "$*" in *install*) echo "$*" >>{calls}; exit 1;; esac'
    _script(venv / "bin" / "python", finds_nothing)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA card")
    done = _make(f"VENV={venv}", f"{venv}/.torch", PATH=path)
    assert done.returncode == 2
    assert "make CUDA=1" in done.stderr
    first, second = calls.read_text().splitlines()
    assert "--no-index" in first
    assert "--index-url https://download.pytorch.org/whl/cpu" in second
    calls.unlink()
    _make(f"VENV={venv}", "CUDA=1", f"{venv}/.torch", PATH=path)
    (only,) = calls.read_text().splitlines()
    assert "--index-url" not in only
    assert f"torch=={_pins('3.11')['torch']}" in only
