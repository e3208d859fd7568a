"""The training of examples/classify in Python's peft: LoRA on query and value of an encoder, and its new head.

    banking77.py MODEL_DIR DATA_DIR --adapter DIR       tests an adapter that the Go program saved
    banking77.py MODEL_DIR DATA_DIR [--epochs 3] [--rows N] [--test-rows N] [--lr 2e-3] [--batch 32] [--seq 64] [--r 8] [--seed 1]

Prints accuracy and seconds as the Go program does. Same hyper-parameters, optimizer, schedule, clipping, dropout and
batches of similar length (sorted in windows of 50 batches); rows are drawn and ordered by another generator.
"""
import argparse
import csv
import pathlib
import time

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup


def read(path, tokenizer, classes, rows, seq, seed):
    with open(path, newline="", encoding="utf-8") as f:
        records = list(csv.DictReader(f))
    label = "label" if "label" in records[0] else "category"
    if classes is None:
        return sorted({r[label] for r in records})
    if rows and rows < len(records):
        order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
        records = [records[i] for i in sorted(order[:rows])]
    ids = tokenizer([r["text"] for r in records], truncation=True, max_length=seq)["input_ids"]
    return [(x, classes.index(r[label])) for x, r in zip(ids, records)]


def collate(rows, pad):
    longest = max(len(ids) for ids, _ in rows)
    ids, mask = torch.full((len(rows), longest), pad), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, (x, _) in enumerate(rows):
        ids[i, : len(x)], mask[i, : len(x)] = torch.tensor(x), 1
    return ids, mask, torch.tensor([y for _, y in rows])


def epoch(data, size, generator):
    """Batches of similar length in random order, the last, incomplete one at the end."""
    order = torch.randperm(len(data), generator=generator).tolist()
    window = 50 * size
    order = [i for k in range(0, len(order), window) for i in sorted(order[k : k + window], key=lambda i: -len(data[i][0]))]
    batches = [order[k : k + size] for k in range(0, len(order), size)]
    full = [b for b in batches if len(b) == size]
    shuffled = torch.randperm(len(full), generator=generator).tolist()
    return [[data[i] for i in full[k]] for k in shuffled] + [[data[i] for i in b] for b in batches if len(b) < size]


@torch.no_grad()
def measure(model, data, size, pad):
    model.eval()
    hits, loss = 0, 0.0
    for k in range(0, len(data), size):
        ids, mask, labels = collate(data[k : k + size], pad)
        out = model(input_ids=ids, attention_mask=mask, labels=labels)
        hits += (out.logits.argmax(-1) == labels).sum().item()
        loss += out.loss.item() * len(labels)
    return loss / len(data), hits / len(data)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("data", type=pathlib.Path)
    p.add_argument("--epochs", type=float, default=3)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--adapter")
    for name, default in dict(rows=0, test_rows=0, batch=32, seq=64, r=8, seed=1, threads=2).items():
        p.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    o = p.parse_args()
    torch.manual_seed(o.seed)
    torch.set_num_threads(o.threads)

    tokenizer = AutoTokenizer.from_pretrained(o.model)
    classes = read(o.data / "train.csv", None, None, 0, 0, 0)
    data = read(o.data / "train.csv", tokenizer, classes, o.rows, o.seq, o.seed)
    test = read(o.data / "test.csv", tokenizer, classes, o.test_rows, o.seq, o.seed)
    base = AutoModelForSequenceClassification.from_pretrained(o.model, num_labels=len(classes), dtype=torch.float32)
    pad = tokenizer.pad_token_id
    if o.adapter:
        loss, accuracy = measure(PeftModel.from_pretrained(base, o.adapter), test, 2 * o.batch, pad)
        print(f"{len(test)} texts: test loss {loss:.4f}, accuracy {accuracy:.4f}")
        return
    model = get_peft_model(base, LoraConfig(task_type=TaskType.SEQ_CLS, r=o.r, lora_alpha=2 * o.r, lora_dropout=0.1,
                                            target_modules=["query", "value"]))
    model.print_trainable_parameters()
    before = measure(model, test, 2 * o.batch, pad)

    trained = [q for q in model.parameters() if q.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=o.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    per_epoch = -(-len(data) // o.batch)
    steps = int(-(-o.epochs * per_epoch // 1))
    schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)
    generator = torch.Generator().manual_seed(o.seed)
    model.train()
    done, total, start = 0, 0.0, time.perf_counter()
    while done < steps:
        for rows in epoch(data, o.batch, generator)[: steps - done]:
            ids, mask, labels = collate(rows, pad)
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            done, total = done + 1, total + loss.item()
            if done % 100 == 0:
                print(f"step {done} of {steps}, loss {total / done:.4f}, {time.perf_counter() - start:.0f} s", flush=True)
    seconds, start = time.perf_counter() - start, time.perf_counter()
    after = measure(model, test, 2 * o.batch, pad)
    print(f"steps {steps}, train loss {total / steps:.4f}, train seconds {seconds:.1f}, test seconds {time.perf_counter() - start:.1f}")
    print(f"test loss before={before[0]:.4f} after={after[0]:.4f}\naccuracy before={before[1]:.4f} after={after[1]:.4f}")


if __name__ == "__main__":
    main()
