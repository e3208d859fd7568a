"""Weights quantised by bitsandbytes on a CPU, one thread: codes, statistics, values.

    quant_golden.py OUT_DIR     writes OUT_DIR/quant/CASE.safetensors and OUT_DIR/quant/tables.safetensors

A case's tensors carry their names; its metadata is in cases.json. Reads OUT_DIR/families and writes there, too:
families/llama_nf4, llama_fp4 and llama_int8 are checkpoints that transformers and bitsandbytes quantised, with the logits they
give, and OUT_DIR/methods/llama_nf4-lora_* are adapters that peft made on one. OUT_DIR/encoders/bert_nf4 is a classifier of theirs,
bert_nf4_lora what peft makes of it in a step.
"""
import os
import pathlib
import sys

import encoders
from common import VOCAB, fill, fresh, random_ids, rng, write_json, write_tensors
from families import forward
from methods import make
import bitsandbytes.functional as F
import bitsandbytes.nn.modules
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, BitsAndBytesConfig, LlamaConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CASES = []
for kind in ("nf4", "fp4"):
    CASES.append((kind, "float32", (8, 64), 64, False, "normal"))
    CASES.append((kind, "bfloat16", (8, 64), 64, True, "normal"))
    CASES.append((kind, "float16", (5, 33), 32, False, "normal"))       # odd, last block partial
CASES += [
    ("nf4", "float32", (3, 43), 64, True, "normal"),                    # odd, last block partial, three blocks
    ("nf4", "float32", (70, 260), 64, True, "normal"),                 # more than 256 blocks, partial nested block
    ("nf4", "bfloat16", (40, 256), 4096, True, "normal"),
    ("nf4", "float32", (4, 64), 64, True, "zeros"),                     # blocks of zeros
    ("nf4", "float32", (1, 70), 64, False, "zeros"),                    # a partial block of zeros
    ("nf4", "float32", (4, 64), 64, False, "tiny"),                     # absmax below 1e-38
    ("nf4", "float32", (2, 128), 128, True, "bounds"),                  # values on the bounds between levels
    ("fp4", "float32", (2, 128), 128, True, "bounds"),
    ("nf4", "float32", (1, 1), 64, True, "normal"),
]


def weight(kind, shape, values, key):
    x = torch.from_numpy(rng("quant", *key).standard_normal(shape)).float() * 0.02
    if values == "zeros":
        x[0, :65] = 0
        if shape[0] > 2:
            x[2] = 0
    if values == "tiny":
        x[0], x[1] = x[0] * 1e-38, x[1] * 1e-42
    if values == "bounds":
        from bitsandbytes.backends.default.ops import _get_4bit_quantize_bounds
        bounds, _ = _get_4bit_quantize_bounds(kind, torch.device("cpu"))
        near = torch.cat([bounds, bounds.nextafter(torch.tensor(2.0)), bounds.nextafter(torch.tensor(-2.0))])
        x = near.repeat(10)[: shape[0] * shape[1]].reshape(shape).clone()
        x[:, 5] = 1.0
    return x


MODELS = {"llama_nf4": dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True), "llama_fp4": dict(bnb_4bit_quant_type="fp4")}


# A layout of its own for inference on some CPUs, which rows of 32 values do not fit.
bitsandbytes.nn.modules.has_avx512bf16 = lambda: False


# Rows of whole blocks: bitsandbytes 0.50.2 dequantises others wrongly on some CPUs.
SIZES = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1,
             max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True)


def models(root):
    for name, options in MODELS.items():
        folder = fresh(root / "families" / name)
        plain = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES), attn_implementation="eager")
        fill(plain, "quantised")
        plain.save_pretrained(folder)
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **options)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config)
        fresh(folder)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        ids = random_ids((2, 16), name)
        write_tensors(folder / "golden.safetensors", dict(input_ids=ids, logits=forward(folder, ids).logits))
    model8(fresh(root / "families" / "llama_int8"))
    lora = dict(task_type="CAUSAL_LM", r=2, lora_alpha=6)
    make(root, "llama_nf4", "lora_q", LoraConfig(target_modules=["q_proj", "down_proj"], **lora), merge=False)
    make(root, "llama_nf4", "lora_dora", LoraConfig(target_modules=["v_proj", "up_proj"], use_dora=True, **lora), drawn=("lora_A", "lora_B"), merge=False)


def model8(folder):
    """A checkpoint in INT8. bitsandbytes also rounds what goes into a product; the logits are those of the weights alone."""
    plain = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES), attn_implementation="eager").eval()
    fill(plain, "quantised")
    plain.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    fresh(folder)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tensors = load_file(folder / "model.safetensors")
    for name in [k for k in tensors if k.endswith(".SCB")]:
        weight = name.removesuffix("SCB") + "weight"
        tensors[weight] = F.int8_vectorwise_dequant(tensors[weight], tensors.pop(name))
    missing, unexpected = plain.load_state_dict(tensors, strict=False)
    assert missing in ([], ["lm_head.weight"]) and all(k.endswith(".weight_format") for k in unexpected), (missing, unexpected)
    ids = random_ids((2, 16), "llama_int8")
    with torch.no_grad():
        write_tensors(folder / "golden.safetensors", dict(input_ids=ids, logits=plain(ids, use_cache=False).logits))


def classifier(root):
    """A sequence classifier in NF4, but its head, and one step of LoRA on it."""
    folder = fresh(root / "bert_nf4")
    config = BertConfig(**encoders.BERT | dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1))
    plain = BertForSequenceClassification(config).float()
    encoders.fill(plain, "bert_nf4")
    plain.save_pretrained(folder)
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32,
                                 llm_int8_skip_modules=["classifier"])  # transformers 5.23 skips its bias alone
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, quantization_config=options)
    fresh(folder)
    model.save_pretrained(folder)
    write_tensors(folder / "golden.safetensors", encoders.answers(model.eval(), "bert_nf4", "Bert"))
    encoders.train_step(root, "bert_nf4", ["query", "value"], "bert_nf4")


def main(root):
    torch.set_num_threads(1)  # a sum of many values depends on the number of threads
    folder, infos = fresh(root / "quant"), []
    for i, (kind, dtype, shape, block, nested, values) in enumerate(CASES):
        name = f"{i:02d}_{kind}_{dtype}_{values}"
        w = weight(kind, shape, values, (i,)).to(DTYPES[dtype])
        packed, state = F.quantize_4bit(w, blocksize=block, compress_statistics=nested, quant_type=kind)
        out = {"weight": w.float(), "packed": packed.flatten(), "values": F.dequantize_4bit(packed, state).float()}
        out |= {k: v for k, v in state.as_dict(packed=True).items()}
        save_file({k: v.contiguous().clone() for k, v in out.items()}, str(folder / f"{name}.safetensors"))
        infos.append(dict(name=name, type=kind, dtype=dtype, shape=list(shape), block=block, nested=nested))
    for dtype in DTYPES:
        w = weight("int8", (20, 40), "normal", ("int8", dtype))
        w[3] = 0
        w[4:, 1:] = (torch.arange(39) * 3 - 57.5) * w[4:, :1] / 127  # halfway between codes
        w = w.to(DTYPES[dtype])
        codes, scb, _ = F.int8_vectorwise_quant(w)
        values = F.int8_vectorwise_dequant(codes, scb)
        save_file(dict(weight=w.float(), codes=codes, scb=scb, values=values), str(folder / f"int8_{dtype}.safetensors"))
    # What double quantisation is made of: the code table, and means of many lengths.
    tables = {"dynamic_map": F.create_dynamic_map()}
    lengths = [1, 3, 5, 7, 8, 9, 31, 32, 33, 100, 511, 512, 513, 1000, 4097, 9001]
    x = torch.from_numpy(rng("means").random(max(lengths))).float()
    tables["means"] = torch.stack([x[:n].mean() for n in lengths])
    tables["mean_lengths"] = torch.tensor(lengths, dtype=torch.int32)
    tables["mean_values"] = x
    probe = torch.from_numpy(rng("probe").standard_normal(4096)).float() ** 3
    codes, state = F.quantize_blockwise(probe, blocksize=256)
    tables |= dict(probe=probe, probe_codes=codes, probe_absmax=state.absmax)
    save_file({k: v.contiguous().clone() for k, v in tables.items()}, str(folder / "tables.safetensors"))
    write_json(folder / "cases.json", infos)
    models(root)
    classifier(root / "encoders")
    torch.set_num_threads(int(os.environ.get("GOLDEN_THREADS", "2")))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
