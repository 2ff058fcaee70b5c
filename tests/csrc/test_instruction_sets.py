"""Compare the CPU library's kernels with plain loops in double (cpu_check.cpp), on every available instruction set.

The native tests run the instruction sets of this machine, and the lanes and tile rows of AVX-512 and aarch64 in more
common instructions. That tests the logic of these sizes, but no AVX-512 or NEON instructions. Those run in emulators,
if installed: aarch64 in qemu, AVX-512 in Bochs.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CHECK = ROOT / "tests" / "csrc" / "cpu_check.cpp"
BFLOAT16_SETS = ["amx", "avx512_bf16", "amx_emulated", "avx512_bf16_emulated"]
SECONDS = 3000  # time limit of an emulator on a busy machine

AARCH64 = "aarch64-linux-gnu-g++"
ISOLINUX = [Path("/usr/lib/ISOLINUX/isolinux.bin"), Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")]


def missing(tools, packages, files=()):
    """Return why a test must be skipped, or None."""
    absent = [tool for tool in tools if not shutil.which(tool)] + [str(file) for file in files if not file.exists()]
    return f"no {', '.join(absent)} (Debian: apt-get install {packages})" if absent else None


def build(folder, *options, targets=("cpu_check",)):
    """Build the program of the check, with HRM_CPU_CHECK as in csrc/cpu/CMakeLists.txt."""
    if reason := missing(["cmake", "ninja"], "cmake ninja-build"):
        pytest.skip(reason)
    pytest.importorskip("tvm_ffi")
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-DHRM_CPU_CHECK={CHECK}", *options]
    for command in (
        ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *options],
        ["cmake", "--build", folder, "--target", *targets],
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder / "csrc" / "cpu" / "cpu_check"


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    return build(tmp_path_factory.mktemp("native"))


@pytest.mark.parametrize("name", ["portable", "avx2", "avx512", "avx512_geometry", "aarch64_geometry", *BFLOAT16_SETS])
def test_here(native, name):
    result = subprocess.run([native, name], capture_output=True, text=True)
    if result.returncode == 2:
        pytest.skip(result.stderr.strip())
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr
    assert result.stdout.endswith(" 0 wrong\n")


@pytest.mark.parametrize(
    ("name", "instruction"), [("amx", "tdpbf16ps"), ("amx", "vcvtneps2bf16"), ("avx512_bf16", "vdpbf16ps")]
)
def test_the_instructions_are_there(native, name, instruction):
    """In every kernel file of the set; in a 2 x 2 scheme each loaded tile is used twice."""
    if reason := missing(["objdump"], "binutils"):
        pytest.skip(reason)
    objects = native.parent / "CMakeFiles" / f"hrm_cpu_{name}.dir"
    if not objects.exists():
        pytest.skip(f"this compiler does not know {name}")
    for kernel in ("linear", "rope_attention", "transformer_block"):
        code = subprocess.run(
            ["objdump", "-d", objects / f"{kernel}.cpp.o"], capture_output=True, text=True, check=True
        ).stdout
        assert instruction in code, kernel
        if name == "amx":
            assert re.search(r"(?:(?:.*tileloadd.*|.*tdpbf16ps.*|.*lea .*)\n){8,}", code), kernel


@pytest.mark.skipif(sys.platform != "linux", reason="qemu runs Linux programs on Linux")
def test_aarch64_in_qemu(tmp_path):
    """Also compile the Python interface; it cannot be linked without a libtvm_ffi for aarch64."""
    if reason := missing([AARCH64, "qemu-aarch64"], "g++-aarch64-linux-gnu qemu-user"):
        pytest.skip(reason)
    program = build(
        tmp_path,
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={AARCH64}",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
        targets=("cpu_check", f"{ROOT / 'csrc' / 'ffi' / 'cpu.cpp'}^"),  # ninja's name for the object of a source
    )
    for name in ("portable", "amx_emulated", "avx512_bf16_emulated"):
        result = subprocess.run(["qemu-aarch64", program, name], capture_output=True, text=True, timeout=SECONDS)
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr
        assert f"{name} float32: panels of 8 columns, tiles of 10 rows" in result.stdout
        assert result.stdout.endswith(" 0 wrong\n")


INIT = r"""
#include <stdio.h>
#include <sys/io.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

int main(void) {
  int status;
  if (!fork()) return execl("/program", "program", ARGUMENT, (char*)0);
  wait(&status);
  printf("wait status %d\n", status);
  fflush(stdout);
  tcdrain(1);
  iopl(3);
  for (const char* c = "Shutdown"; *c; ++c) outb(*c, 0x8900);  // Bochs flushes its output and ends
  for (;;) pause();
}
"""


def boot(program, argument, folder):
    """Run a static program on a minimal Linux in Bochs with AVX-512; returns its output on the serial port."""
    kernels = sorted(path for path in Path("/boot").glob("vmlinuz-*") if os.access(path, os.R_OK))
    if reason := missing(
        ["gcc", "bochs", "xorriso", "cpio", "script"],
        "bochs bochs-term bochsbios vgabios isolinux syslinux-common xorriso cpio",
        ISOLINUX,
    ):
        pytest.skip(reason)
    if not kernels:
        pytest.skip("no /boot/vmlinuz-* (Debian: apt-get install linux-image-cloud-amd64)")
    disc, serial = folder / "disc", folder / "serial"
    (disc / "isolinux").mkdir(parents=True)
    for file in ISOLINUX:
        shutil.copy(file, disc / "isolinux")
    shutil.copy(kernels[-1], disc / "vmlinuz")
    shutil.copy(program, folder / "program")
    compiler = ["gcc", "-static", f'-DARGUMENT="{argument}"', "-xc", "-", "-o", folder / "init"]
    subprocess.run(compiler, input=INIT.encode(), check=True)
    with open(disc / "initrd", "wb") as initrd:
        subprocess.run(["cpio", "-oH", "newc"], input=b"program\ninit\n", stdout=initrd, cwd=folder, check=True)
    # noxsaves, clearcpuid: otherwise Linux disables AVX, because Bochs reports other sizes of the compacted format
    (disc / "isolinux" / "isolinux.cfg").write_text(
        "DEFAULT check\nLABEL check\nKERNEL /vmlinuz\nINITRD /initrd\nAPPEND console=ttyS0 noxsaves clearcpuid=xsavec "
        "mitigations=off tsc=reliable lpj=4000000\n"
    )
    subprocess.run(
        ["xorriso", "-as", "mkisofs", "-quiet", "-o", folder / "disc.iso", "-b", "isolinux/isolinux.bin"]
        + ["-c", "isolinux/boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", disc],
        check=True,
    )
    (folder / "bochsrc").write_text(
        "megs: 512\n"
        "romimage: file=/usr/share/bochs/BIOS-bochs-latest\n"
        "vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n"
        "cpu: model=corei7_skylake_x, ips=50000000\n"
        f"ata0-master: type=cdrom, path={folder / 'disc.iso'}, status=inserted\n"
        "boot: cdrom\n"
        f"com1: enabled=1, mode=file, dev={serial}\n"
        "display_library: term\n"
        f"log: {folder / 'log'}\n"
    )
    (folder / "commands").write_text("c\n")  # Debian's Bochs starts in its debugger: continue
    command = f"bochs -q -f {folder / 'bochsrc'} -rc {folder / 'commands'}"
    messages, reader = folder / "messages", None
    with open(messages, "wb") as output:
        process = subprocess.Popen(
            ["script", "-qfc", command, "/dev/null"],  # the debugger needs a terminal
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "TERM": "xterm"},
            start_new_session=True,
        )
    end = time.monotonic() + SECONDS
    try:
        while process.poll() is None and time.monotonic() < end:
            time.sleep(1)
            screen = re.search(r'connected to screen "(/dev/pts/\d+)"', messages.read_text(errors="replace"))
            if screen and reader is None:  # it would block when its screen is full
                reader = subprocess.Popen(["cat", screen[1]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return serial.read_text(errors="replace").replace("\r", "")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if reader:
            reader.kill()
            reader.wait()


def test_avx512_in_bochs(tmp_path):
    program = build(tmp_path / "build", "-DCMAKE_EXE_LINKER_FLAGS=-static")
    text = boot(program, "avx512", tmp_path)
    assert "avx512 float32: panels of 32 columns, tiles of 12 rows" in text, text[-4000:]
    assert " 0 wrong\n" in text and "wait status 0\n" in text, text[-4000:]
