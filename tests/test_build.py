"""What compiles, from what, and what the sources may contain."""

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from csrc import build

REPOSITORY = Path(__file__).resolve().parent.parent
TOOLS = build.find_toolchain()

needs_compiler = pytest.mark.skipif(
    not (TOOLS.cxx and TOOLS.ninja), reason="no C++ compiler or no ninja on this machine"
)
needs_nvcc = pytest.mark.skipif(
    not (TOOLS.nvcc and TOOLS.ninja), reason="no nvcc or no ninja on this machine"
)


def test_unknown_kind_names_the_accepted_ones() -> None:
    with pytest.raises(build.BuildError, match="auto, none, cpu, cuda, got 'gpu'"):
        build.choose_kind("gpu", TOOLS)


def test_auto_without_a_compiler_builds_nothing_and_says_why() -> None:
    bare = dataclasses.replace(TOOLS, cxx="", ninja="")
    kind, reason = build.choose_kind("auto", bare)
    assert kind == "none"
    assert "no C++ compiler" in reason
    assert "ninja" in reason


@pytest.mark.promise("B2")
def test_without_torch_the_message_says_what_to_run() -> None:
    bare = dataclasses.replace(TOOLS, torch_root="")
    with pytest.raises(build.BuildError, match="--no-build-isolation"):
        build.choose_kind("cpu", bare)


def test_cuda_by_name_without_nvcc_is_an_error() -> None:
    bare = dataclasses.replace(
        TOOLS, nvcc="", torch_cuda="13.0", cxx="g++", ninja="ninja", torch_root="torch"
    )
    with pytest.raises(build.BuildError, match="nvcc was not found"):
        build.choose_kind("cuda", bare)


def test_kind_none_removes_an_older_library(tmp_path: Path) -> None:
    (tmp_path / build.LIBRARY_NAME).write_bytes(b"stale")
    record = build.build_library(tmp_path, kind="none")
    assert record["kind"] == "none"
    assert not (tmp_path / build.LIBRARY_NAME).exists()
    assert json.loads((tmp_path / "_build_info.json").read_text()) == record


@needs_compiler
def test_failed_compile_under_auto_leaves_a_record(tmp_path: Path, monkeypatch) -> None:
    sources = tmp_path / "csrc"
    for folder in ("cpu", "registration"):
        (sources / folder).mkdir(parents=True)
    (sources / "cpu" / "broken.cpp").write_text("int f() { return undeclared_name; }\n")
    monkeypatch.setattr(build, "SOURCES", sources)
    record = build.build_library(tmp_path / "out", kind="auto")
    assert record["kind"] == "none"
    assert "undeclared_name" in record["error"]
    with pytest.raises(build.BuildError, match="undeclared_name"):
        build.build_library(tmp_path / "out", kind="cpu")


@needs_compiler
@pytest.mark.promise("K12a")
@pytest.mark.parametrize("folder", ["cpu", "node", "registration"])
def test_an_offset_in_32_bits_does_not_compile(tmp_path: Path, monkeypatch, folder: str) -> None:
    sources = tmp_path / "csrc"
    (sources / folder).mkdir(parents=True)
    kernel = "inline int last(long long numel) {{ return {}; }}\n"
    (sources / folder / "narrow.cpp").write_text(kernel.format("numel - 1"))
    monkeypatch.setattr(build, "SOURCES", sources)
    with pytest.raises(build.BuildError, match="conversion from"):
        build.build_library(tmp_path / "out", kind="cpu")
    (sources / folder / "narrow.cpp").write_text(kernel.format("numel > 1"))
    build.build_library(tmp_path / "out", kind="cpu")


@needs_nvcc
@needs_compiler
@pytest.mark.timeout(300)
def test_cuda_registration_compiles_against_the_headers() -> None:
    build.check_cuda_registration(REPOSITORY / "build" / "cuda-registration-check")


def test_only_registration_has_heard_of_torch() -> None:
    for path in sorted((REPOSITORY / "csrc").rglob("*")):
        if path.suffix not in {".h", ".cpp", ".cu", ".cuh"}:
            continue
        text = path.read_text()
        includes = re.findall(r'#include\s*[<"]([^>"]+)[>"]', text)
        torch_headers = [name for name in includes if name.startswith(("torch/", "ATen/", "c10/"))]
        if path.parent.name != "registration":
            assert not torch_headers, f"{path} includes {torch_headers}"
        stable = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/")
        private = [name for name in torch_headers if not name.startswith(stable)]
        assert not private, f"{path} includes {private}"


FORBIDDEN_IMPORTS = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def violations(tree: ast.AST) -> list[str]:
    """Name every construct of the security rules that a module uses."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_IMPORTS]
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.split(".")[0] in FORBIDDEN_IMPORTS:
                found.append(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in FORBIDDEN_CALLS or name in {"os.system", "torch.load"}:
                found.append(name)
            for word in node.keywords:
                literal = isinstance(word.value, ast.Constant) and word.value.value is True
                if word.arg in {"shell", "allow_pickle"} and literal:
                    found.append(f"{word.arg}=True")
        elif isinstance(node, ast.ExceptHandler):
            silent = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
            broad = node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
            if node.type is None or (silent and broad):
                found.append("except that swallows")
    return found


def test_package_keeps_the_security_rules() -> None:
    for path in sorted((REPOSITORY / "pyfast_nas").rglob("*.py")):
        assert not violations(ast.parse(path.read_text())), path


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from yaml import load",
        "eval('1')",
        "os.system('ls')",
        "torch.load('x')",
        "subprocess.run('ls', shell=True)",
        "numpy.load('x', allow_pickle=True)",
        "try:\n  f()\nexcept:\n  raise",
        "try:\n  f()\nexcept Exception:\n  pass",
    ],
)
def test_planted_violation_is_found(code: str) -> None:
    assert violations(ast.parse(code))


@pytest.mark.long
@needs_compiler
@pytest.mark.promise("B1")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "tag"), [("none", "py3-none-any"), ("cpu", "cp311-abi3-linux_x86_64")]
)
def test_wheel_holds_what_its_tag_says(tmp_path: Path, kind: str, tag: str) -> None:
    source = tmp_path / "checkout"
    listed = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, listed):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((REPOSITORY / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYFAST_NAS_BUILD": kind},
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith(f"-{tag}.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert ("pyfast_nas/_C.abi3.so" in names) == (kind == "cpu")
    assert "pyfast_nas/_csrc/build.py" in names
    assert "pyfast_nas/_csrc/math/macros.h" in names
    assert "pyfast_nas/data/digits.npz" in names
    assert not any("_host" in name.rsplit("/", 1)[-1] and name.endswith(".so") for name in names)
