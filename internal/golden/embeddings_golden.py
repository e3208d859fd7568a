"""Adapters that peft saves the base's embeddings along with (save_embedding_layers).

    embeddings_golden.py OUT_DIR     reads OUT_DIR/families, writes OUT_DIR/embeddings/CASE/

Each folder holds the adapter as peft saves it and logits.safetensors: input_ids, logits.
"""
import pathlib
import sys
import warnings

from adapters import save
from common import fresh, load, rng, write_tensors
from lora_golden import batch
import torch
from peft import LoraConfig, get_peft_model


def case(root, name, family, targets, expected, vocabulary=None, **options):
    """expected is a part of the warning that peft gives of its own accord, or None."""
    base = load(root / "families" / family)
    if vocabulary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base.resize_token_embeddings(vocabulary, mean_resizing=False)
        with torch.no_grad():
            for p in {id(p): p for p in (base.get_input_embeddings().weight, base.get_output_embeddings().weight)}.values():
                p[64:] = torch.from_numpy(rng("embeddings", name).standard_normal((vocabulary - 64, p.shape[1])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=targets)).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.requires_grad:
                p.copy_(torch.from_numpy(0.3 * rng("embeddings", name, key).standard_normal(tuple(p.shape))))
    # peft compares the vocabulary with that of the base's folder.
    model.peft_config["default"].base_model_name_or_path = str(root / "families" / family)
    folder = fresh(root / "embeddings" / name)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model.save_pretrained(folder / "check", **options)
    said = [str(w.message) for w in seen if "save_embedding_layers" in str(w.message)]
    if (expected is None) != (not said) or expected and expected not in said[0]:
        raise SystemExit(f"{name}: peft says {said}, expected {expected}")
    for path in (folder / "check").iterdir():
        path.unlink()
    (folder / "check").rmdir()
    model.peft_config["default"].base_model_name_or_path = f"families/{family}"
    save(model, folder, save_embedding_layers=options.get("save_embedding_layers", expected is not None))
    ids, _ = batch(name)
    with torch.no_grad():
        write_tensors(folder / "logits.safetensors", dict(input_ids=ids, logits=model(ids).logits))
    print(f"embeddings/{name}", flush=True)


def main(root):
    case(root, "targeted", "llama", ["embed_tokens", "q_proj"], "embedding layers found in `target_modules`")
    case(root, "head_targeted", "llama", ["lm_head", "q_proj"], "embedding layers found in `target_modules`")
    case(root, "asked", "llama_tied", ["q_proj"], None, save_embedding_layers=True)
    case(root, "refused", "llama", ["embed_tokens", "q_proj"], None, save_embedding_layers=False)
    case(root, "untargeted", "llama", ["q_proj"], None)
    case(root, "resized", "llama", ["q_proj"], "the embedding layer has been resized during finetuning", vocabulary=66)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
