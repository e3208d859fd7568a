"""Load a merged Hugging Face folder that Go wrote with AutoModelForCausalLM and compare the logits.

    check_merged.py MERGED_DIR IDS.safetensors [--base BASE_DIR] [--tolerance 1e-4]

IDS.safetensors is that of check_adapter.py. Fails (exit code 1) on any warning of transformers, on missing,
unexpected or wrongly shaped weights, on logits out of tolerance, and with --base on a configuration that
differs from the base model's in anything but dtype and version.
"""
import argparse
import json
import logging
import pathlib
import warnings

from check_adapter import difference, forward
from common import load
import transformers
from safetensors.torch import load_file
from transformers import AutoTokenizer

IGNORED_KEYS = {"dtype", "torch_dtype", "transformers_version", "_name_or_path"}


class Collect(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def configuration_differences(merged, base):
    a, b = (transformers.AutoConfig.from_pretrained(p).to_dict() for p in (merged, base))
    return [f"config {k}: {a.get(k)!r}, base has {b.get(k)!r}" for k in sorted((a.keys() | b.keys()) - IGNORED_KEYS) if a.get(k) != b.get(k)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("merged", type=pathlib.Path)
    parser.add_argument("ids")
    parser.add_argument("--base")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_warning()
    said = Collect()
    logging.getLogger("transformers").addHandler(said)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = load(args.merged)
        if (args.merged / "tokenizer.json").exists():
            AutoTokenizer.from_pretrained(args.merged)
    problems = [f"warning: {w.message}" for w in seen] + [f"log: {line}" for line in said.lines]
    if json.loads((args.merged / "config.json").read_text()).get("architectures") is None:
        problems.append("config.json: no architectures")
    if args.base:
        problems += configuration_differences(args.merged, args.base)
    data = load_file(args.ids)
    wrong, size = difference(forward(model, data), data)
    if not bool((wrong <= args.tolerance * (1 + size)).all()):
        problems.append(f"logits differ by up to {wrong.max():.3g}, tolerance {args.tolerance:g}")
    print(f"{args.merged}: max difference {wrong.max().item():.3g} (|logits| up to {size.max().item():.3g})")
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
