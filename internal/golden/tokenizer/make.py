"""Makes the golden data of models/tokenizer with Hugging Face's own libraries.

    python make.py [NAME=FOLDER ...]

Without arguments it trains the four tiny tokenizers (written to
models/tokenizer/testdata/tiny, with their golden ids). Each NAME=FOLDER adds the
golden ids of a real tokenizer.json and, if the folder has a chat template, of
rendered conversations; the files themselves are other people's and stay where
they are. Versions of the libraries are written into each file.
"""

import base64
import copy
import gzip
import hashlib
import json
import os
import pathlib
import sys

import jinja2
import tokenizers
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import charsmap
import corpus

DATA = pathlib.Path(__file__).resolve().parents[3] / "models" / "tokenizer" / "testdata"
VERSIONS = {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__, "jinja2": jinja2.__version__}
PAIRS = [(0, 1), (3, 40), (45, 46), (200, 7), (-1, 5), (150, 160)]


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    with open(path, "wb") as f:
        f.write(gzip.compress(text.encode(), 9, mtime=0))
    print(path.relative_to(DATA), os.path.getsize(path), "bytes")


def encodings(tok):
    """Ids without and with special tokens, the decoded texts and some pairs."""
    tok.no_truncation()
    tok.no_padding()
    texts = [s.decode("utf-8", errors="replace") for s in corpus.strings()]
    plain = [tok.encode(t, add_special_tokens=False).ids for t in texts]
    special = [tok.encode(t).ids for t in texts]
    pairs = [tok.encode(texts[a], texts[b]) for a, b in PAIRS]
    n = tok.get_vocab_size()
    # Ids in an order that no text gives: byte tokens and parts of characters.
    odd = [[(i * 7919 + j * 104729 + i * j) % (n + 3) for j in range(12)] for i in range(60)]
    odd += [[(i + j) % min(n, 300) for j in range(5)] for i in range(0, 300, 3)]
    odd = [[i for i in ids if tok.id_to_token(i) is not None] for ids in odd]
    return {
        "ids": plain,
        "special": special,
        "decoded": [tok.decode(ids, skip_special_tokens=False) for ids in special],
        "skipped": [tok.decode(ids, skip_special_tokens=True) for ids in special],
        "pairs": [{"a": a % len(texts), "b": b % len(texts), "ids": e.ids, "types": e.type_ids} for (a, b), e in zip(PAIRS, pairs)],
        "odd": odd,
        "odd_decoded": [tok.decode(ids, skip_special_tokens=False) for ids in odd],
        "size": max(tok.get_vocab(with_added_tokens=True).values()) + 1,
    }


def renderings(folder):
    """What apply_chat_template makes of each conversation, or its error."""
    tok = PreTrainedTokenizerFast.from_pretrained(folder)
    if tok.chat_template is None:
        return None
    out = []
    for name, messages, options in corpus.CHATS:
        try:
            text, error = tok.apply_chat_template(copy.deepcopy(messages), tokenize=False, **copy.deepcopy(options)), None
        except Exception as e:  # the template refuses, or fails
            text, error = None, f"{type(e).__name__}: {e}"
        out.append({"name": name, "text": text, "error": error})
    return out


def golden(name, folder):
    data = (folder / "tokenizer.json").read_bytes()
    value = {"versions": VERSIONS, "sha256": hashlib.sha256(data).hexdigest(), **encodings(Tokenizer.from_str(data.decode()))}
    if (folder / "tokenizer_config.json").exists():
        value["chats"] = renderings(folder)
    write(DATA / "golden" / f"{name}.json.gz", value)


def save_tiny(name, tok, config):
    folder = DATA / "tiny" / name
    folder.mkdir(parents=True, exist_ok=True)
    raw = tok if isinstance(tok, dict) else json.loads(tok.to_str())
    (folder / "tokenizer.json").write_text(json.dumps(raw, ensure_ascii=False, separators=(",", ":")) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    golden("tiny-" + name, folder)


def tiny_bytelevel(lines):
    """Llama 3's shape: split by a pattern, then bytes; NFC as Qwen; added tokens of every flag."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|im_start|>", "<|im_end|>", "<pad>"]
    tok.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=480, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True, normalized=False)])
    tok.add_tokens([AddedToken("<tag>", rstrip=True, normalized=False), AddedToken("tea", single_word=True, normalized=True), AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing("<|begin|> $A", "<|begin|> $A <|begin|>:1 $B:1", [("<|begin|>", tok.token_to_id("<|begin|>"))])])
    config = {"bos_token": {"__type": "AddedToken", "content": "<|begin|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}, "eos_token": "<|im_end|>", "pad_token": "<pad>", "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": (pathlib.Path(__file__).parent / "chat_template.jinja").read_text()}
    save_tiny("bytelevel", tok, config)


def tiny_spbpe(lines):
    """Llama 2's shape: no pre-tokenizer, byte fallback, a blank put first."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    alphabet = sorted({c for line in lines for c in line if c < "\x7f" and c not in "\n\t\r "})
    ascii_lines = [line for line in lines if all(c < "\u0250" for c in line)]
    tok.train_from_iterator(ascii_lines, trainers.BpeTrainer(vocab_size=500, special_tokens=special, limit_alphabet=len(alphabet) + 8, initial_alphabet=alphabet, show_progress=False))
    raw = json.loads(tok.to_str())
    raw["added_tokens"] = raw["added_tokens"][:3]
    raw["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]]  # the older form
    raw["pre_tokenizer"] = None
    raw["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    raw["decoder"] = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    raw["post_processor"] = json.loads(processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1)]).__getstate__())
    save_tiny("spbpe", raw, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None, "tokenizer_class": "PreTrainedTokenizerFast"})


def tiny_wordpiece(lines):
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer()
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tok.train_from_iterator(lines, trainers.WordPieceTrainer(vocab_size=500, limit_alphabet=110, special_tokens=special, show_progress=False))
    tok.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)])
    tok.enable_truncation(12)
    tok.enable_padding(length=12)
    save_tiny("wordpiece", tok, {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]", "tokenizer_class": "PreTrainedTokenizerFast"})


def tiny_unigram(lines):
    """T5's shape: a charsmap of our own, runs of blanks joined, Metaspace."""
    tok = Tokenizer(models.Unigram())
    precompiled = normalizers.Precompiled(base64.b64decode(charsmap.build(charsmap.RULES)))
    tok.normalizer = normalizers.Sequence([precompiled, normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")])
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tok.decoder = decoders.Metaspace(prepend_scheme="always")
    lines = [line for line in lines if all(c < "\u0180" for c in line)]
    tok.train_from_iterator(lines, trainers.UnigramTrainer(vocab_size=420, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    tok.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    save_tiny("unigram", tok, {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "tokenizer_class": "PreTrainedTokenizerFast"})


def main():
    print(VERSIONS)
    lines = corpus.training_text()
    texts = [base64.b64encode(s).decode() for s in corpus.strings()]
    chats = [{"name": n, "messages": m, "options": o} for n, m, o in corpus.CHATS]
    write(DATA / "golden" / "strings.json.gz", {"strings": texts, "chats": chats})
    print(len(texts), "strings,", len(chats), "conversations")
    if len(sys.argv) == 1:
        for make in (tiny_bytelevel, tiny_spbpe, tiny_wordpiece, tiny_unigram):
            make(lines)
    for arg in sys.argv[1:]:
        name, folder = arg.split("=", 1)
        golden(name, pathlib.Path(folder))


main()
