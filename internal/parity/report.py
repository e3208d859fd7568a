"""Puts measurements of both sides beside each other. Nothing here passes or fails.

    report.py step GO.txt PYTHON.txt         the last lines of examples/benchmark and of bench_peers/hf_cpu.py
    report.py tokenizers GO.txt PYTHON.txt   of BenchmarkEncode and of internal/golden/tokenizer/bench.py
"""
import json
import pathlib
import re
import sys


def last_json(text):
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


def step(go, python):
    a, b = last_json(go), last_json(python)
    print(f"SmolLM2 LoRA r{a['Rank']} {a['Targets'].replace('_proj', '')} {a['Batch']}x{a['Length']}: "
          f"gopeft {a['Platform']} {a['MedianMS']:.0f} ms, peft {b['median_ms']:.0f} ms, ratio {a['MedianMS'] / b['median_ms']:.2f} "
          f"(fastest step {a['FastestMS']:.0f} and {b['min_ms']:.0f} ms, ratio {a['FastestMS'] / b['min_ms']:.2f}); "
          f"host peak {a['HostPeak'] / 2**30:.2f} GiB vs {b['maxrss_gib']:.2f} GiB")


def tokenizers(go, python):
    ours = dict(re.findall(r"^BenchmarkEncode/(\S+?/\w+?)(?:-\d+)?\s.*?([\d.]+) MB/s", go, re.M))
    theirs = dict(re.findall(r"^(\S+/\w+): .*?([\d.]+) MB/s", python, re.M))
    print(f"{'tokenizing, MB/s on one thread':32} {'gopeft':>8} {'tokenizers':>10} {'ratio':>6}")
    for name, speed in theirs.items():
        if name in ours:
            print(f"{name:32} {float(ours[name]):8.1f} {float(speed):10.1f} {float(ours[name]) / float(speed):6.1f}")


if __name__ == "__main__":
    what, go, python = sys.argv[1:]
    {"step": step, "tokenizers": tokenizers}[what](pathlib.Path(go).read_text(), pathlib.Path(python).read_text())
