"""Tiny random models of every supported family, with the logits transformers gives them.

    families.py OUT_DIR     writes OUT_DIR/families/CASE/{config.json, model.safetensors, golden.safetensors}

Every golden tensor is described in README.md. Each case proves while it is made that all
of its weights and each option it is about do change the logits.
"""
import copy
import dataclasses
import json
import pathlib
import sys

from common import VOCAB, fill, fresh, is_norm, load, neutral_norm, random_ids, write_json, write_tensors
import torch
from transformers import (AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GemmaConfig, GPT2Config, GPTNeoXConfig, LlamaConfig,
                          MistralConfig, OPTConfig, Phi3Config, Qwen2Config, Qwen3Config)

SIZES = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, pad_token_id=0, bos_token_id=1,
             eos_token_id=2, tie_word_embeddings=False)
# Variants that are about one option keep their files small: tied, fewer and wider heads, less feed-forward.
SMALL = SIZES | dict(intermediate_size=16, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
# Variants about one activation or storage format are smaller still.
TINY = SMALL | dict(hidden_size=16)


def rope(kind, theta=10000.0, **options):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **options))


PLAIN_ROPE = rope("default")
YARN = dict(factor=4.0, original_max_position_embeddings=32)


# Gemma: head_dim 8 is not hidden_size / num_attention_heads in SMALL_GEMMA; the embedding is tied, as it always is.
GEMMA = SIZES | dict(head_dim=8, tie_word_embeddings=True)
SMALL_GEMMA = SMALL | dict(head_dim=8)
TINY_GEMMA = TINY | dict(head_dim=8)
GEMMA2 = dict(attn_logit_softcapping=2.0, final_logit_softcapping=12.0, sliding_window=8)


def ropes(sliding_attention=None, rope_type="default", **full):
    """Gemma 3's: one for layers that see everything, one for those with a window."""
    return dict(rope_parameters=dict(full_attention=dict(rope_type=rope_type, **full),
                                     sliding_attention=sliding_attention or dict(rope_type="default", rope_theta=10000.0)))


LONG = dict(original_max_position_embeddings=32)
LONG_FACTORS = dict(short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5], long_factor=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], partial_rotary_factor=0.75)

# The older decoders. Few positions, since each has a row; every linear and norm has a bias.
COMMON = dict(vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2)
GPT2 = COMMON | dict(n_embd=32, n_layer=2, n_head=4, n_inner=48, n_positions=48)
OPT = COMMON | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, max_position_embeddings=48)
NEOX = COMMON | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=128)


@dataclasses.dataclass
class Case:
    config: type
    arguments: dict
    changes: list = dataclasses.field(default_factory=list)  # overrides each of which must move the logits
    dtype: torch.dtype = torch.float32                       # on disk
    shard: str = "5GB"
    whole: bool = True                                       # False: input_ids and logits only


CASES = {
    "llama": Case(LlamaConfig, SIZES | rope("default", 500.0), [PLAIN_ROPE, dict(rms_norm_eps=0.1)]),
    "llama_tied": Case(LlamaConfig, SIZES | dict(tie_word_embeddings=True)),
    "llama_bias": Case(LlamaConfig, SMALL | dict(attention_bias=True, mlp_bias=True)),
    "llama_headdim": Case(LlamaConfig, SMALL | dict(head_dim=24)),
    "llama_gelu": Case(LlamaConfig, TINY | dict(hidden_act="gelu"), [dict(hidden_act="silu")], whole=False),
    "llama_gelu_tanh": Case(LlamaConfig, TINY | dict(hidden_act="gelu_pytorch_tanh"), [dict(hidden_act="gelu")], whole=False),
    "llama_relu": Case(LlamaConfig, TINY | dict(hidden_act="relu"), [dict(hidden_act="silu")], whole=False),
    "llama3_rope": Case(LlamaConfig, SMALL | rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                  original_max_position_embeddings=32), [PLAIN_ROPE]),
    "linear_rope": Case(LlamaConfig, SMALL | rope("linear", factor=4.0), [PLAIN_ROPE]),
    "dynamic_rope": Case(LlamaConfig, SMALL | dict(max_position_embeddings=32) | rope("dynamic", factor=2.0), [PLAIN_ROPE]),
    "yarn_rope": Case(LlamaConfig, SMALL | rope("yarn", **YARN), [PLAIN_ROPE, rope("yarn", **YARN, attention_factor=1.0)]),
    "yarn_rope_explicit": Case(LlamaConfig, SMALL | rope("yarn", **YARN, attention_factor=1.3, beta_fast=16.0, beta_slow=2.0),
                               [PLAIN_ROPE, rope("yarn", **YARN, attention_factor=1.3)]),
    "mistral": Case(MistralConfig, SIZES | dict(sliding_window=8), [dict(sliding_window=None), dict(sliding_window=9)]),
    "qwen2": Case(Qwen2Config, SIZES | dict(use_sliding_window=False, sliding_window=8, max_window_layers=2)),
    "qwen2_sliding": Case(Qwen2Config, SMALL | dict(use_sliding_window=True, sliding_window=8, max_window_layers=1),
                          [dict(use_sliding_window=False), dict(max_window_layers=0)]),
    "qwen3": Case(Qwen3Config, SIZES | dict(head_dim=16)),
    "smollm2": Case(LlamaConfig, SMALL | rope("default", 100000.0), dtype=torch.bfloat16, whole=False),
    "llama_f16": Case(LlamaConfig, TINY, dtype=torch.float16, whole=False),
    "llama_f64": Case(LlamaConfig, TINY, dtype=torch.float64, whole=False),
    "llama_sharded": Case(LlamaConfig, SMALL, shard="12KB", whole=False),
} | {
    "gemma": Case(GemmaConfig, GEMMA | rope("default"), [rope("default", 500.0), dict(hidden_act="relu"), dict(rms_norm_eps=0.1)]),
    # "gelu" means the tanh approximation here; attention_bias is q, k, v and o.
    "gemma_untied": Case(GemmaConfig, TINY_GEMMA | dict(hidden_act="gelu", attention_bias=True, tie_word_embeddings=False),
                         [dict(hidden_act="relu")], whole=False),
    "gemma2": Case(Gemma2Config, GEMMA | GEMMA2 | dict(query_pre_attn_scalar=5), [
        dict(query_pre_attn_scalar=8), dict(attn_logit_softcapping=None), dict(final_logit_softcapping=None), dict(sliding_window=9),
        dict(layer_types=["full_attention", "sliding_attention"]), dict(hidden_activation="relu")]),
    "gemma2_uncapped": Case(Gemma2Config, TINY_GEMMA | dict(attn_logit_softcapping=None, final_logit_softcapping=None, sliding_window=8,
                            query_pre_attn_scalar=8, layer_types=["full_attention", "sliding_attention"]),
                            [dict(attn_logit_softcapping=2.0), dict(final_logit_softcapping=2.0)]),
    "gemma3_text": Case(Gemma3TextConfig, GEMMA | ropes(rope_theta=100.0) | dict(query_pre_attn_scalar=5, sliding_window=8,
                        sliding_window_pattern=2, final_logit_softcapping=12.0), [
        dict(query_pre_attn_scalar=8), dict(final_logit_softcapping=None), dict(sliding_window=9), ropes(rope_theta=1e6),
        dict(layer_types=["full_attention", "sliding_attention"]),
        ropes(rope_theta=100.0, sliding_attention=dict(rope_type="default", rope_theta=50.0))]),
    "gemma3_linear_rope": Case(Gemma3TextConfig, SMALL_GEMMA | dict(query_pre_attn_scalar=8, sliding_window=64, sliding_window_pattern=2)
                               | ropes(rope_theta=100.0, rope_type="linear", factor=4.0), [ropes(rope_theta=100.0)]),
    "phi3": Case(Phi3Config, SIZES | dict(sliding_window=8, resid_pdrop=0.1, embd_pdrop=0.1) | rope("default", 500.0),
                 [dict(sliding_window=None), dict(sliding_window=9), PLAIN_ROPE]),
    "phi3_partial": Case(Phi3Config, SMALL | rope("default", partial_rotary_factor=0.75), [PLAIN_ROPE]),
    # 16 positions are short and 40 are long: input_ids are of the one kind and long_ids of the other.
    "phi3_longrope": Case(Phi3Config, SMALL | LONG | rope("longrope", **LONG_FACTORS),
                          [PLAIN_ROPE, rope("longrope", **LONG_FACTORS | dict(long_factor=[2.0] * 6)),
                           dict(max_position_embeddings=32)]),
    "llama_longrope": Case(LlamaConfig, SMALL | LONG | rope("longrope", short_factor=[1.0] * 8, long_factor=[3.0] * 8,
                                                            attention_factor=0.9),
                           [PLAIN_ROPE, rope("longrope", short_factor=[1.0] * 8, long_factor=[3.0] * 8)]),
} | {
    "gpt2": Case(GPT2Config, GPT2, [dict(scale_attn_weights=False), dict(scale_attn_by_inverse_layer_idx=True),
                                    dict(activation_function="relu"), dict(layer_norm_epsilon=0.1)]),
    "gpt2_scaling": Case(GPT2Config, GPT2 | dict(n_embd=16, n_head=2, n_inner=None, tie_word_embeddings=False, scale_attn_weights=False,
                         scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True, activation_function="gelu", layer_norm_epsilon=1e-3),
                         [dict(scale_attn_weights=True), dict(scale_attn_by_inverse_layer_idx=False), dict(activation_function="relu"),
                          dict(layer_norm_epsilon=0.1)], whole=False),
    "opt": Case(OPTConfig, OPT, [dict(activation_function="gelu")]),
    # As the 350M model: norms after the halves, a narrower embedding.
    "opt_post": Case(OPTConfig, OPT | dict(do_layer_norm_before=False, word_embed_proj_dim=16, activation_function="gelu"),
                     [dict(do_layer_norm_before=True, _remove_final_layer_norm=True), dict(activation_function="relu")]),
    "opt_bare": Case(OPTConfig, OPT | dict(hidden_size=16, num_attention_heads=2, ffn_dim=32, enable_bias=False, tie_word_embeddings=False,
                     layer_norm_elementwise_affine=False, _remove_final_layer_norm=True),
                     [dict(_remove_final_layer_norm=False), dict(do_layer_norm_before=False)], whole=False),
    "gpt_neox": Case(GPTNeoXConfig, NEOX | dict(num_attention_heads=2) | rope("default", 500.0, partial_rotary_factor=0.25), [
        dict(use_parallel_residual=False), rope("default", 500.0, partial_rotary_factor=0.5), rope("default", partial_rotary_factor=0.25),
        dict(hidden_act="relu"), dict(layer_norm_eps=0.1)]),
    "gpt_neox_sequential": Case(GPTNeoXConfig, NEOX | dict(hidden_size=16, num_attention_heads=2, intermediate_size=32,
                                use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True, hidden_act="gelu_new")
                                | rope("linear", 500.0, partial_rotary_factor=0.5, factor=4.0),
                                [dict(use_parallel_residual=True), rope("default", 500.0, partial_rotary_factor=0.5),
                                 rope("linear", 500.0, partial_rotary_factor=1.0, factor=4.0), dict(hidden_act="relu")]),
}
# The keys that transformers 4 wrote and that hub checkpoints still carry.
LEGACY_ROPE = {"llama3_rope", "linear_rope", "dynamic_rope", "yarn_rope", "llama", "gemma3_linear_rope", "phi3_longrope", "gpt_neox",
               "gpt_neox_sequential"}
# Weights that cannot matter: softmax takes no notice of what all keys of a query have in common.
IDLE = {"opt": "k_proj.bias", "opt_post": "k_proj.bias"}


def padded(lengths, side, *key):
    """ids, mask and positions of rows of unequal lengths, pad id 0."""
    n = max(lengths)
    ids, mask = torch.zeros(len(lengths), n, dtype=torch.long), torch.zeros(len(lengths), n, dtype=torch.long)
    for row, length in enumerate(lengths):
        at = slice(n - length, n) if side == "left" else slice(0, length)
        ids[row, at], mask[row, at] = random_ids(length, *key, side, row), 1
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


def forward(folder, ids, **kwargs):
    # A new model each time: dynamic RoPE remembers the longest call.
    with torch.no_grad():
        return load(folder)(input_ids=ids, use_cache=False, **kwargs)


def golden(folder, case):
    out = {"input_ids": random_ids((2, 16), case, "plain")}
    run = forward(folder, out["input_ids"], output_hidden_states=True)
    out["logits"], out["hidden_1"] = run.logits, run.hidden_states[1]
    for side in ("left", "right"):
        ids, mask, positions = padded([10, 7, 3], side, case)
        out |= {f"{side}_ids": ids, f"{side}_mask": mask, f"{side}_positions": positions,
                f"{side}_logits": forward(folder, ids, attention_mask=mask, position_ids=positions).logits}
    # With an explicit mask of ones positions only turn the heads: nothing is taken for packing.
    ids = random_ids((3, 8), case, "positions")
    positions = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10], [0, 1, 2, 3, 9, 10, 20, 21], [0, 0, 0, 1, 2, 2, 3, 4]])
    out |= {"pos_ids": ids, "pos_positions": positions,
            "pos_logits": forward(folder, ids, attention_mask=torch.ones_like(ids), position_ids=positions).logits}
    # Without a mask, positions that start again separate packed sequences.
    ids = random_ids((2, 12), case, "packed")
    lengths = [[5, 4, 3], [2, 10]]
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    segments = torch.stack([torch.cat([torch.full((n,), i + 1) for i, n in enumerate(row)]) for row in lengths])
    if case.startswith("opt"):  # takes nothing for packing
        pieces = [[forward(folder, piece).logits for piece in ids[row:row + 1].split(sizes, dim=1)] for row, sizes in enumerate(lengths)]
        packed = torch.cat([torch.cat(row, dim=1) for row in pieces])
    else:
        packed = forward(folder, ids, position_ids=positions).logits
    for row, sizes in enumerate(lengths):
        start = 0
        for size in sizes:
            alone = forward(folder, ids[row:row + 1, start:start + size]).logits
            torch.testing.assert_close(packed[row:row + 1, start:start + size], alone, rtol=1e-4, atol=1e-4)
            start += size
    out |= {"packed_ids": ids, "packed_positions": positions, "packed_segments": segments, "packed_logits": packed}
    out["long_ids"] = random_ids((1, 40), case, "long")
    out["long_logits"] = forward(folder, out["long_ids"]).logits
    return out


def prove(folder, case, config, overrides, out):
    """Every weight and every option the case is about must change the logits visibly."""
    model = load(folder)
    for name, p in model.named_parameters():
        if case in IDLE and name.endswith(IDLE[case]):
            continue
        with torch.no_grad():
            kept = p.clone()
            p.fill_(neutral_norm(model) if is_norm(name) else 0.0)
            moved = (model(out["long_ids"], use_cache=False).logits - out["long_logits"]).abs().max().item()
            p.copy_(kept)
        if moved < 0.05:
            raise SystemExit(f"{case}: weight {name} moves the logits by only {moved:.2g}")
    weights = model.state_dict()
    for override in overrides:
        changed = copy.deepcopy(config.to_dict()) | override
        if "layer_types" not in override:
            changed.pop("layer_types", None)
        model = AutoModelForCausalLM.from_config(type(config)(**changed), attn_implementation="eager").float().eval()
        model.load_state_dict(weights)
        with torch.no_grad():
            moved = (model(out["long_ids"]).logits - out["long_logits"]).abs().max().item()
        if moved < 1e-3:
            raise SystemExit(f"{case}: {override} moves the logits by only {moved:.2g}")


def write_legacy(folder, case, out):
    """config_legacy.json: the same model as transformers 4 described it (rope_theta, rope_scaling, torch_dtype)."""
    config = json.loads((folder / "config.json").read_text())
    parameters = config.pop("rope_parameters")
    if case == "gemma3_linear_rope":
        config["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = 2
        del config["layer_types"]
        parameters = parameters["full_attention"]
    theta = "rope_theta"
    if case.startswith("gpt_neox"):
        theta, config["rotary_pct"] = "rotary_emb_base", parameters.pop("partial_rotary_factor")
    config[theta] = parameters.pop("rope_theta")
    config["rope_scaling"] = None if parameters["rope_type"] == "default" else parameters
    if case == "linear_rope":  # the oldest spelling
        parameters["type"] = parameters.pop("rope_type")
    if case == "phi3_longrope":  # LongRoPE's first name
        config["partial_rotary_factor"] = parameters.pop("partial_rotary_factor")
        parameters["type"] = "su"
        del parameters["rope_type"]
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"
    write_json(folder / "config_legacy.json", config)
    model = AutoModelForCausalLM.from_config(CASES[case].config.from_json_file(folder / "config_legacy.json"),
                                             attn_implementation="eager").float().eval()
    model.load_state_dict(load(folder).state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(out["long_ids"]).logits, out["long_logits"], rtol=1e-6, atol=1e-6)


def make(root, name):
    case = CASES[name]
    config = case.config(**case.arguments)
    folder = fresh(root / name)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(case.dtype)
    fill(model, name)
    model.save_pretrained(folder, max_shard_size=case.shard)
    (folder / "generation_config.json").unlink(missing_ok=True)
    out = golden(folder, name)
    prove(folder, name, config, case.changes, out)
    if name in LEGACY_ROPE:
        write_legacy(folder, name, out)
    keep = out if case.whole else {k: out[k] for k in ("input_ids", "logits")}
    write_tensors(folder / "golden.safetensors", keep)
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name:20} {size / 1024:6.0f} KiB  logits |max| {out['logits'].abs().max():.2f}", flush=True)


def main(root):
    for name in CASES:
        make(root / "families", name)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
