"""Compare two fixture trees: the committed one and one that was just made.

    compare.py COMMITTED REGENERATED [PART...]

Every file must be on both sides. Integers, texts and names must be equal; floats within a tolerance that
follows their dtype, ten times wider in curves/ (twenty steps of an optimizer add up). Library versions
written into configurations are ignored. With PARTs (families, lora, ...) only those folders are compared.
Prints every difference; the exit code is 1 if there is one, 2 for wrong use.
"""
import json
import pathlib
import sys

import torch
from safetensors import safe_open

# |a - b| <= atol + rtol |b|. Weights come from numpy and are bit-equal; these are for what was computed.
TOLERANCE = {torch.float64: (1e-5, 1e-5), torch.float32: (2e-5, 2e-5), torch.bfloat16: (0, 0), torch.float16: (0, 0)}
JSON_TOLERANCE = (2e-5, 2e-5)
IGNORED_KEYS = {"transformers_version", "peft_version"}


def close(a, b, tolerance):
    return abs(a - b) <= tolerance[0] + tolerance[1] * abs(b)


def compare_json(a, b, at, wide, report):
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted((set(a) | set(b)) - IGNORED_KEYS):
            if key not in a or key not in b:
                report(f"{at}.{key}: only in {'the committed' if key in a else 'the regenerated'} file")
            else:
                compare_json(a[key], b[key], f"{at}.{key}", wide, report)
    elif isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            report(f"{at}: {len(a)} entries, regenerated {len(b)}")
        for i, (x, y) in enumerate(zip(a, b)):
            compare_json(x, y, f"{at}[{i}]", wide, report)
    elif type(a) is float and type(b) is float:
        if not close(b, a, [wide * t for t in JSON_TOLERANCE]):
            report(f"{at}: {a!r}, regenerated {b!r}")
    elif type(a) is not type(b) or a != b:
        report(f"{at}: {a!r}, regenerated {b!r}")


def compare_tensors(a, b, at, wide, report):
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        report(f"{at}: {a.dtype} {list(a.shape)}, regenerated {b.dtype} {list(b.shape)}")
    elif not a.is_floating_point():
        if not torch.equal(a, b):
            report(f"{at}: integers differ")
    else:
        atol, rtol = TOLERANCE[a.dtype]
        # Also false for NaN on either side: no fixture may hold one.
        ok = (a.double() - b.double()).abs() <= wide * (atol + rtol * a.double().abs())
        if not ok.all():
            report(f"{at}: {int((~ok).sum())} of {ok.numel()} values differ, by up to {(a.double() - b.double()).abs().max():.3g}")


def compare_safetensors(a, b, at, wide, report):
    with safe_open(a, "pt") as x, safe_open(b, "pt") as y:
        if x.metadata() != y.metadata():
            report(f"{at}: metadata {x.metadata()}, regenerated {y.metadata()}")
        names, others = set(x.keys()), set(y.keys())
        for name in sorted(names ^ others):
            report(f"{at}: {name} only in {'the committed' if name in names else 'the regenerated'} file")
        for name in sorted(names & others):
            compare_tensors(x.get_tensor(name), y.get_tensor(name), f"{at}: {name}", wide, report)


def compare_trees(committed, regenerated, parts=(), report=print):
    """The number of differences."""
    count = 0

    def say(line):
        nonlocal count
        count += 1
        report(line)

    def files(root):
        return {p.relative_to(root) for p in root.rglob("*") if p.is_file() and (not parts or p.relative_to(root).parts[0] in parts)}

    left, right = files(committed), files(regenerated)
    if not left:
        say(f"{committed}: no files")
    for path in sorted(left ^ right):
        say(f"{path}: only in the {'committed' if path in left else 'regenerated'} tree")
    for path in sorted(left & right):
        a, b, wide = committed / path, regenerated / path, 10 if path.parts[0] == "curves" else 1
        if path.suffix == ".json":
            compare_json(json.loads(a.read_text()), json.loads(b.read_text()), str(path), wide, say)
        elif path.suffix == ".safetensors":
            compare_safetensors(a, b, str(path), wide, say)
        elif a.read_bytes() != b.read_bytes():
            say(f"{path}: bytes differ")
    return count, len(left | right)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        raise SystemExit(2)
    differences, total = compare_trees(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:])
    print(f"{total} files, {differences} differences")
    raise SystemExit(1 if differences else 0)
