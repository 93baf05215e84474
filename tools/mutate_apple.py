"""Breaks the Apple route in known ways and shows that a test catches each.

    python tools/mutate_apple.py [NAME...]

Works on a copy of the sources. Exit status 1 if a mutation survives.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
APPLE = "src/device/apple"
TESTS = (
    "test_apple_device",
    "test_apple_coreml",
    "test_apple_variants",
    "test_apple_machines",
    "test_apple_accelerate",
    "test_fingerprint",
)


@dataclass
class Mutation:
    """`old` in `file` becomes `new`, everywhere."""

    name: str
    file: str
    old: str
    new: str


MUTATIONS = [
    Mutation(
        "missing release",
        f"{APPLE}/objc.h",
        'send<void>(object_, "release");',
        "",
    ),
    Mutation(
        "missing retain",
        f"{APPLE}/objc.h",
        'object_(send(object, "retain"))',
        "object_(object)",
    ),
    Mutation(
        "misspelt selector",
        f"{APPLE}/in_memory.cpp",
        '"loadWithQoS:options:error:"',
        '"loadWithQos:options:error:"',
    ),
    Mutation(
        "swapped binding by ASCII order",
        f"{APPLE}/binding.cpp",
        "ports[a].name < ports[b].name",
        "ports[a].name > ports[b].name",
    ),
    Mutation(
        "binding that ignores names",
        f"{APPLE}/binding.cpp",
        "if (inputs && outputs) {",
        "if (false) {",
    ),
    Mutation(
        "unchecked BOOL of evaluate",
        f"{APPLE}/framework_program.cpp",
        "if (!connection_->evaluate(",
        "if (connection_->evaluate(",
    ),
    Mutation(
        "unchecked BOOL of load",
        f"{APPLE}/framework_program.cpp",
        "return loaded_ = connection_->load(model_.get(), error);",
        "connection_->load(model_.get(), error);\n    return loaded_ = true;",
    ),
    Mutation(
        "missing unload",
        f"{APPLE}/framework_program.cpp",
        "if (std::exchange(loaded_, false)) {",
        "if (false) {",
    ),
    Mutation(
        "leaked surface",
        f"{APPLE}/surface.h",
        "CFRelease(surface);",
        "static_cast<void>(surface);",
    ),
    Mutation(
        "leaked staging folder",
        f"{APPLE}/program_files.cpp",
        "if (!cached() || (!compiled_ && lock_.held())) {",
        "if (false) {",
    ),
    Mutation(
        "trusted cache entry",
        f"{APPLE}/program_files.cpp",
        "files->compiled_ = intact(files->directory_, source);",
        "files->compiled_ = std::filesystem::exists(files->directory_);",
    ),
    Mutation(
        "swallowed exception",
        f"{APPLE}/objc_guard.m",
        "return 1;",
        "return 0;",
    ),
    Mutation(
        "use after fork",
        f"{APPLE}/system.cpp",
        "if (!in_same_process()) {",
        "if (false) {",
    ),
    Mutation(
        "e5rt stream encoded twice",
        f"{APPLE}/e5rt.cpp",
        "if (std::exchange(used_, true)) {",
        "if (false) {",
    ),
    Mutation(
        "e5rt surfaces not compared",
        f"{APPLE}/e5rt.cpp",
        "if (surfaces == encoded_) {",
        "if (!encoded_.empty()) {",
    ),
    Mutation(
        "e5rt encoded on every call",
        f"{APPLE}/e5rt.cpp",
        "if (surfaces == encoded_) {",
        "if (false) {",
    ),
    Mutation(
        "e5rt without host buffers",
        f"{APPLE}/e5rt.cpp",
        "bytes, e5rt::host_buffer",
        "bytes, e5rt::iosurface_buffer",
    ),
    Mutation(
        "e5rt's CPU is its engine",
        f"{APPLE}/e5rt.cpp",
        "on_cpu ? e5rt::cpu_only : e5rt::engine_only",
        "e5rt::engine_only",
    ),
    Mutation(
        "stale program not compiled again",
        f"{APPLE}/framework_program.cpp",
        "if (may_pass(failure) && files_->compiled()) {",
        "if (false) {",
    ),
    Mutation(
        "compile not tried again",
        f"{APPLE}/framework_program.cpp",
        "std::this_thread::sleep_for(pause);\n    failure = once();",
        "std::this_thread::sleep_for(pause);",
    ),
    Mutation(
        "daemon not asked for what it compiled",
        f"{APPLE}/framework_program.cpp",
        "files_->compiled() && connection_->compiled(model_.get())",
        "files_->compiled()",
    ),
    Mutation(
        "unbounded compile",
        f"{APPLE}/bounds.cpp",
        "if (!run_bounded(std::move(call), bound)) {",
        "if (call(), false) {",
    ),
    Mutation(
        "strides of attributes ignored",
        f"{APPLE}/framework_program.cpp",
        "found == known.end()",
        "true || found == known.end()",
    ),
    Mutation(
        "alignment of the verdict ignored",
        f"{APPLE}/device.cpp",
        "if (alignment <= Limits::row_alignment) {",
        "if (true) {",
    ),
    Mutation(
        "files always in our folder",
        f"{APPLE}/in_memory.cpp",
        "if (!by_id_ && takes_directory()) {",
        "if (takes_directory()) {",
    ),
    Mutation(
        "kinds of a method not compared",
        f"{APPLE}/objc.cpp",
        "if (!kinds.empty() && kinds != expected) {",
        "if (false) {",
    ),
    Mutation(
        "CPU taken for an engine",
        "src/device/fingerprint.cpp",
        "lost ? Fingerprint::engine : Fingerprint::cpu",
        "Fingerprint::engine",
    ),
    Mutation(
        "e5rt code ignored",
        f"{APPLE}/e5rt.cpp",
        "if (code == 0) {",
        "if (code >= 0) {",
    ),
    Mutation(
        "Core ML plan ignored",
        f"{APPLE}/coreml_placement.cpp",
        "if (!out.elsewhere && !send<ObjcBool>(device",
        "if (false && !send<ObjcBool>(device",
    ),
    Mutation(
        "Core ML rounding ignored",
        f"{APPLE}/coreml.cpp",
        "if (rounding == Fingerprint::cpu && knows_rounding_) {",
        "if (false) {",
    ),
    Mutation(
        "Core ML rounding trusted on M1",
        f"{APPLE}/coreml.cpp",
        'known && !chip.starts_with("h13")',
        "known.has_value()",
    ),
    Mutation(
        "Core ML on any device",
        f"{APPLE}/coreml_abi.h",
        "cpu_and_engine = 3",
        "cpu_and_engine = 2",
    ),
    Mutation(
        "Core ML backings taken for written",
        f"{APPLE}/coreml.cpp",
        "if (!surface.holds(array)) {",
        "if (false) {",
    ),
    Mutation(
        "Core ML copy without strides",
        f"{APPLE}/coreml_surface.cpp",
        "at += rest % port.shape[axis] * stride[axis];",
        "at += rest % port.shape[axis] * stride[rank - 1];",
    ),
    Mutation(
        "Core ML waits for ever",
        f"{APPLE}/coreml.cpp",
        "within(bound + std::chrono::seconds(1), ",
        "within(std::chrono::milliseconds(0), ",
    ),
    Mutation(
        "Core ML handler not bounded",
        f"{APPLE}/coreml_block.cpp",
        "state.changed.wait_until(lock, deadline, [&] { return state.done; })",
        "(state.changed.wait(lock, [&] { return state.done; }), true)",
    ),
    Mutation(
        "block that does not own what it captures",
        f"{APPLE}/coreml_block.h",
        "has_copy_dispose = 1 << 25",
        "has_copy_dispose = 0",
    ),
    Mutation(
        "block that is not let go",
        f"{APPLE}/coreml_block.h",
        "std::destroy_at(&static_cast<const Literal*>(block)->body);",
        "static_cast<void>(block);",
    ),
    Mutation(
        "pixel buffer of another geometry",
        f"{APPLE}/coreml_surface.cpp",
        "height *= static_cast<size_t>(port.shape[i]);",
        "height = static_cast<size_t>(port.shape[i]);",
    ),
    Mutation(
        "leaked pixel buffer",
        f"{APPLE}/coreml_surface.cpp",
        "CFRelease(buffer);",
        "static_cast<void>(buffer);",
    ),
    Mutation(
        "no package in the place of memory",
        f"{APPLE}/coreml.cpp",
        "if (!out.model && !out.elsewhere) {",
        "if (false) {",
    ),
    Mutation(
        "compiled package left behind",
        f"{APPLE}/coreml.cpp",
        "fs::remove_all(file, ignored);",
        "static_cast<void>(file);",
    ),
    Mutation(
        "hang tried again as a package",
        f"{APPLE}/coreml.cpp",
        "error.cause != Cause::hang &&",
        "",
    ),
    Mutation(
        "wrong BLAS label",
        "src/blas/accelerate_abi.h",
        '__asm(name "$NEWLAPACK")',
        "__asm(name)",
    ),
    Mutation(
        "divisor and dividend swapped in Adam",
        "src/kernels/adam_accelerate.cpp",
        "vDSP_vdiv(work, 1, m_out, 1,",
        "vDSP_vdiv(m_out, 1, work, 1,",
    ),
]


def build_and_test(source: Path, build: Path) -> str | None:
    """The first failing step, or None if every test passes."""
    make = ["cmake", "--build", str(build), "--parallel", "2", "--target", *TESTS]
    if subprocess.run(make, capture_output=True, cwd=source).returncode:
        return "build"
    for test in TESTS:
        program = build / "tests/cpp" / test
        try:
            code = subprocess.run(
                [program], capture_output=True, timeout=300
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
        if code:
            return test
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="mutations to try; all if none")
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if not arguments.names or m.name in arguments.names]
    with tempfile.TemporaryDirectory() as folder:
        source, build = Path(folder, "source"), Path(folder, "build")
        for part in ("src", "cmake", "tests", "benchmarks"):
            shutil.copytree(ROOT / part, source / part)
        shutil.copy(ROOT / "CMakeLists.txt", source)
        configure = ["cmake", "-S", str(source), "-B", str(build), "-G", "Ninja"]
        options = ["EXTENSION=OFF", "TESTS=ON", "DOUBLES=ON"]
        configure += [f"-DMLX_ANE_{option}" for option in options]
        configure += [f"-DPython_EXECUTABLE={sys.executable}"]
        # Compiling is what takes the time here.
        configure += ["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0"]
        subprocess.run(configure, check=True, capture_output=True)
        if failed := build_and_test(source, build):
            print(f"unchanged sources fail at {failed}")
            return 1
        survivors = 0
        for mutation in chosen:
            path = source / mutation.file
            text = path.read_text()
            if mutation.old not in text:
                raise ValueError(f"{mutation.name}: the text to break is gone")
            path.write_text(text.replace(mutation.old, mutation.new))
            caught = build_and_test(source, build)
            path.write_text(text)
            if caught == "build":
                raise ValueError(f"{mutation.name}: does not compile")
            survivors += caught is None
            print(f"{mutation.name}: {f'caught by {caught}' if caught else 'SURVIVES'}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
