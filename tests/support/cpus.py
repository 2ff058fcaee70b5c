"""``make test-cpus``: the numerical tests as other CPUs would run them, as far as one machine can pretend to be them.

Each kind sets what PyTorch, MKL, oneDNN and our library may use, and the number of threads. A machine without AVX-512
leaves that kind out. Prints a line for each kind; exits with 1 where a test has failed.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = [
    "tests/hrm/test_golden.py",
    "tests/hrm/test_model.py",
    "tests/hrm/test_trm.py",
    "tests/hrm/test_gradient_modes.py",
    "tests/hrm/inference",
    "tests/hrm/training/test_trainer.py",
    "tests/hrm_kernels/test_casts.py",
    "tests/hrm_kernels/test_cpu.py",
    "tests/hrm_kernels/test_cpu_properties.py",
    "tests/hrm_kernels/test_nn.py",
    "tests/hrm_kernels/test_ops.py",
    "tests/hrm_kernels/test_optim.py",
    "tests/hrm_kernels/test_token_mixing.py",
    "tests/bench/test_published.py",
]
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "HRM_KERNELS_INSTRUCTION_SET": "avx2",
}
KINDS = {
    "as it is": {},
    "AVX-512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "HRM_KERNELS_INSTRUCTION_SET": "avx512",
    },
    "AVX2": AVX2,
    # products whose rows depend on their place, on any machine
    "MKL's compatible order": {"MKL_CBWR": "COMPATIBLE"},
    "no vector instructions": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "HRM_KERNELS_INSTRUCTION_SET": "portable",
    },
    "the reference backend only": {"HRM_KERNELS_BACKEND": "reference"},
}
"""What each kind sets in the environment."""


def missing(settings: dict[str, str]) -> str | None:
    """Why this machine cannot be of that kind; None where it can."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    wanted = settings.get("HRM_KERNELS_INSTRUCTION_SET", "").replace("avx512", "avx512f")
    if wanted in ("avx2", "avx512f") and f" {wanted} " not in flags:
        return f"this machine has no {wanted}"
    return None


def main(arguments: list[str]) -> int:
    """Arguments are those of pytest for every run, and names of kinds (as far as they go) to run only those."""
    names = [name for name in KINDS if any(name.lower().startswith(one.lower()) for one in arguments)] or list(KINDS)
    options = [one for one in arguments if not any(name.lower().startswith(one.lower()) for name in KINDS)]
    failed, lines = False, []
    for name in names:
        reason = missing(KINDS[name])
        for threads in (1, 2):
            if reason is None:
                start = time.monotonic()
                command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *options]
                found = subprocess.run(
                    [*command, *TESTS],
                    cwd=ROOT,
                    env=os.environ | KINDS[name] | {"OMP_NUM_THREADS": str(threads)},
                    text=True,
                    stdout=subprocess.PIPE,
                )
                failed |= found.returncode != 0
                if found.returncode:
                    print(found.stdout, flush=True)
                said = f"{found.stdout.strip().splitlines()[-1]} ({time.monotonic() - start:.0f} s)"
            else:
                said = f"left out: {reason}"
            lines.append(f"{name}, {threads} thread{'s' * (threads > 1)}: {said}")
            print(lines[-1], flush=True)
    print("", *lines, sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
