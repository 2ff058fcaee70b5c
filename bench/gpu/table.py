"""The readable form of a run: ``results.md``."""

from collections.abc import Iterator, Mapping
from typing import Any


def table(result: Mapping[str, Any]) -> str:
    """The contents of ``results.json`` as Markdown."""
    lines = [*_head(result), "", *_parts(result)]
    if result["ceilings"]:
        lines += ["", *_targets(result), "", *_timings(result)]
    return "\n".join(lines) + "\n"


def _head(result: Mapping[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    yield f"# {result['device']}, {result['date'][:10]}"
    yield ""
    yield f"`{result['command']}` at {result['commit']}; {versions}."
    for when, clocks in result["clocks"].items():
        yield f"Clocks {when} the run (SM, memory, SM at most; temperature, power): {clocks}."
    for name, reason in result["backends"].items():
        yield f"Backend {name}: {reason or 'runs'}."


def _parts(result: Mapping[str, Any]) -> Iterator[str]:
    yield from ("| part | result | seconds | |", "| --- | --- | --- | --- |")
    for name, part in result["parts"].items():
        yield f"| {name} | {part['status']} | {part['seconds']} | {part['summary'].replace('|', '/')} |"
    for part, failed in result["failed_tests"].items():
        yield from (f"- {part}: {test}" for test in failed)


def _targets(result: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Targets (H200, bfloat16) and measured values", "")
    yield from ("| what | expected | measured | met |", "| --- | --- | --- | --- |")
    for row in result["expected"]:
        met = {True: "yes", False: "no", None: ""}[row["met"]]
        yield f"| {row['what']} | {row['expected']} | {row['measured']} | {met} |"


def _timings(result: Mapping[str, Any]) -> Iterator[str]:
    copy, matmul = result["ceilings"]["copy_bytes_per_s"], result["ceilings"]["matmul_flops_per_s"]
    yield from ("## Timings", "")
    yield (
        f"Ceilings of this run: copy {copy / 1e9:.0f} GB/s (read plus written), "
        f"bfloat16 matrix product {matmul / 1e12:.3g} TFLOP/s."
    )
    yield (
        "Times are medians, with the 10th and the 90th percentile. graph: replays of a CUDA graph over rotating "
        "inputs, without launches; calls: with launches. GB/s and TFLOP/s count the fewest bytes and operations."
    )
    yield ""
    yield "| part | workload | dtype | backend | µs | from, to | how | GB/s | of copy | TFLOP/s | of matmul |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in result["timings"]:
        start = f"| {row['part']} | {row['workload']} | {row.get('dtype', '')} | {row['backend']} |"
        if row["status"] != "ok":
            yield f"{start} {row['status'].replace('|', '/')} | | | | | | |"
            continue
        bandwidth, rate = row["bytes"] / row["seconds"], row["operations"] / row["seconds"]
        moved = f"{bandwidth / 1e9:.0f} | {bandwidth / copy:.0%}" if row["bytes"] else "|"
        computed = f"{rate / 1e12:.3g} | {rate / matmul:.0%}" if row["operations"] else "|"
        spread = f"{1e6 * row['low']:.1f}, {1e6 * row['high']:.1f}"
        yield f"{start} {1e6 * row['seconds']:.1f} | {spread} | {row['mode']} | {moved} | {computed} |"
