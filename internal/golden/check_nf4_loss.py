"""Compare what NF4 costs a causal model in Go with what it costs in transformers, bitsandbytes and peft.

    check_nf4_loss.py MODEL_DIR ADAPTER_DIR ROWS.safetensors [--tolerance 1e-4]

ROWS.safetensors has rows of ids I32 [rows, length] with labels of the same shape (-100: not a target), padded on the
right: `NAME.ids` and `NAME.labels` of texts to evaluate, and of `train`, of which --batch rows make a step. `go` F32
[2, texts, 2] are Go's losses: of the model as it is and in NF4 with double quantisation, of the texts by name, before
and after the training of the adapter on `train` with AdamW at --rate. Fails (exit code 1) where Python's losses differ
by more than the tolerance, relative. Prints all.
"""
import argparse

import bitsandbytes.nn.modules
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

# A layout of its own for inference on some CPUs.
bitsandbytes.nn.modules.has_avx512bf16 = lambda: False


def losses(model, ids, labels):
    """The sum of the targets' losses, and their number."""
    logits = model(input_ids=ids).logits[:, :-1]
    targets = labels[:, 1:]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"), (targets != -100).sum()


def evaluate(model, ids, labels, batch):
    model.eval()
    total = count = 0
    with torch.no_grad():
        for x, y in zip(ids.split(batch), labels.split(batch)):
            loss, n = losses(model, x, y)
            total, count = total + loss.item(), count + n.item()
    return total / count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("adapter")
    parser.add_argument("rows")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args()
    data = load_file(args.rows)
    get = lambda name: (data[f"{name}.ids"].long(), data[f"{name}.labels"].long())
    texts = sorted(k.removesuffix(".ids") for k in data if k.endswith(".ids") and k != "train.ids")
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32)
    python = torch.zeros(2, len(texts), 2)
    for i, options in enumerate((None, nf4)):
        base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, quantization_config=options)
        model = PeftModel.from_pretrained(base, args.adapter, is_trainable=True)
        python[i, :, 0] = torch.tensor([evaluate(model, *get(t), args.batch) for t in texts])
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.rate, weight_decay=0.0)
        ids, labels = get("train")
        for x, y in zip(ids.split(args.batch), labels.split(args.batch)):
            loss, count = losses(model, x, y)
            (loss / count).backward()
            optimizer.step()
            optimizer.zero_grad()
        python[i, :, 1] = torch.tensor([evaluate(model, *get(t), args.batch) for t in texts])
    problems = []
    for k, text in enumerate(texts):
        for when in range(2):
            go, py = data["go"][:, k, when], python[:, k, when]
            wrong = ((go - py).abs() / py).max().item()
            percent = lambda x: f"{x[0]:.4f}, NF4 {x[1]:.4f} ({100 * (x[1] / x[0] - 1):+.2f} %)"
            print(f"{text} {'after' if when else 'before'} training: Go {percent(go)}; Python {percent(py)}; largest relative difference {wrong:.2g}")
            if not wrong <= args.tolerance:
                problems.append(f"{text}: losses differ by {wrong:.3g}, tolerance {args.tolerance:g}")
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
