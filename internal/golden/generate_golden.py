"""Greedy generation of transformers on tiny models: a batch of unequal prompts, padded on the left.

    generate_golden.py OUT_DIR     reads OUT_DIR/families, writes OUT_DIR/generate/generate.json

Each case has the prompts (without padding) and the 20 new ids of each row; no row stops at an end token.
The prompts are the first of a seeded sequence for which the best logit always leads by 0.005, far above
what float32 can disturb.
"""
import pathlib
import sys

from common import fresh, load, random_ids, write_json
import torch
from transformers import GenerationConfig

NEW, MIN_GAP = 20, 0.005
LENGTHS = [3, 9, 6, 1]
CASES = {
    "llama": ["llama", {}],
    "llama_penalty": ["llama", dict(repetition_penalty=1.3)],
    "llama_tied": ["llama_tied", {}],
    "mistral": ["mistral", {}],
    "mistral_penalty": ["mistral", dict(repetition_penalty=1.8)],
    "qwen2_sliding": ["qwen2_sliding", {}],
    "qwen3": ["qwen3", {}],
    "qwen3_penalty": ["qwen3", dict(repetition_penalty=1.3)],
    "yarn_rope": ["yarn_rope", {}],
    "gpt2": ["gpt2", {}],
    "opt": ["opt", {}],
    "opt_post": ["opt_post", {}],
    "gpt_neox": ["gpt_neox", {}],
    "gpt_neox_sequential": ["gpt_neox_sequential", {}],
    "gemma": ["gemma", {}],
    "gemma2": ["gemma2", {}],
    "gemma3_text": ["gemma3_text", {}],
    "phi3": ["phi3", {}],
    "phi3_longrope": ["phi3_longrope", {}],
}
# From 33 tokens on LongRoPE turns by its other factors, in every row of a batch at once.
OTHER_LENGTHS = {"phi3_longrope": [20, 20]}


def clear_row(model, family, length, i):
    """A prompt of length ids whose NEW next ids lead clearly, those ids, and the smallest lead."""
    for attempt in range(100):
        prompt = random_ids((length,), "generate", family, i, attempt)
        run = model.generate(input_ids=prompt[None], attention_mask=torch.ones_like(prompt[None]),
                             return_dict_in_generate=True, output_scores=True)
        best = torch.cat(run.scores).topk(2, dim=-1).values
        gap = (best[:, 0] - best[:, 1]).min().item()
        if gap > MIN_GAP:
            return prompt, run.sequences[0, len(prompt):], gap
    raise SystemExit(f"{family}: no prompt of {length} ids whose choices are clear")


def generate(root, name):
    family, options = CASES[name]
    model = load(root / "families" / family)
    # No row ends early: the model's own end token is not one here.
    model.generation_config = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None,
                                               bos_token_id=1, **options)
    lengths = OTHER_LENGTHS.get(name, LENGTHS)
    with torch.no_grad():
        prompts, new, gaps = zip(*(clear_row(model, family, length, i) for i, length in enumerate(lengths)))
        width = max(lengths)
        pad = lambda x: torch.nn.functional.pad(x, (width - len(x), 0))
        ids, mask = torch.stack([pad(p) for p in prompts]), torch.stack([pad(torch.ones_like(p)) for p in prompts])
        together = model.generate(input_ids=ids, attention_mask=mask)[:, width:]
    new = torch.stack(new)
    # A penalty also falls on the padding id, which transformers takes for seen; here that never decides.
    if not torch.equal(new, together):
        raise SystemExit(f"{name}: padding changes the ids")
    print(f"{name:18} distinct ids {len(new.unique())}, smallest gap {min(gaps):.3f}", flush=True)
    return dict(model=f"families/{family}", options=options, prompts=[p.tolist() for p in prompts], new_ids=new.tolist(),
                smallest_gap=min(gaps))


def main(root):
    write_json(fresh(root / "generate") / "generate.json", {n: generate(root, n) for n in CASES})


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
