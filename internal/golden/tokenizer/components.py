"""Tokenizers that differ from a plain one in a single part of tokenizer.json.

    python components.py

The model is WordLevel and knows every piece that the library cuts the texts
into, so that ids show the cuts. Writes models/tokenizer/testdata/golden/components.json.gz.
"""

import base64
import gzip
import json
import pathlib

import tokenizers
from tokenizers import AddedToken, Tokenizer

import charsmap

TEXTS = [
    "", " ", "Hello, world!", "  two  blanks  ", "a-b--c---d", "x1y22z333 ٣٤ ½Ⅷ", "tab\tnew\nline\r\n end", "don't I'LL 'S it's", "ÀÉÎ õü ñ ß İI ǅ", "e\u0301a\u0300\u0323 q\u0307\u0323",
    "ﬁ ① ㈱ Å ＡＢ　１", "日本語テキスト、漢字。", "안녕 하세요 각", "नमस्ते दुनिया", "😀👍🏽 👨\u200d👩\u200d👧 🇩🇪", "a\u00a0b\u2003c\u3000d", "\x00\x07a\x7f\u200b\ufeff\u00ad\ufffd", "▁a▁▁b ▁", "foo.bar(baz)[1];", "$5 + 3 = 8 ^ ~ `x` | <y>",
    "aXXbXc", "XX", "XaX", "aaa", "(()) ((", "tea teas steatea tea, TEA", "[M] x[M]y  [M]  z", "[R]  x  [R]y", "a<n>b <N> C", "word", "Z" + "\u0335\u0321" * 20 + "x", "  lead", "trail  ", "\n\n\n", "UPPER lower MiXeD", "\u1c80 \u10a0 \u13a0", "a_b c__d", "!?!? ... --", "ⅣⅨ ²³", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
]

SPLITS = [({"String": "X"}, "literal"), ({"Regex": "X+"}, "regex"), ({"Regex": r"\s+"}, "blanks"), ({"Regex": r"[A-Z]?[a-z]+|\d"}, "camel"), ({"Regex": r"x*"}, "empty matches"), ({"String": " "}, "blank"), ({"Regex": r"^.|.$"}, "line ends"),
          ({"Regex": r"\p{Han}|\p{Hangul}+"}, "scripts"), ({"Regex": r"(?i)tea(?!s)|(?<=e)a"}, "look around")]
BEHAVIORS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]


def pre_tokenizers():
    for pattern, name in SPLITS:
        for behavior in BEHAVIORS:
            for invert in (False, True):
                yield f"Split {name} {behavior} {invert}", {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}
    for behavior in BEHAVIORS:
        yield f"Punctuation {behavior}", {"type": "Punctuation", "behavior": behavior}
    for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer"):
        yield kind, {"type": kind}
    yield "CharDelimiterSplit", {"type": "CharDelimiterSplit", "delimiter": "X"}
    yield "Digits", {"type": "Digits", "individual_digits": False}
    yield "Digits individual", {"type": "Digits", "individual_digits": True}
    yield "FixedLength", {"type": "FixedLength", "length": 3}
    for prefix in (False, True):
        for regex in (False, True):
            yield f"ByteLevel {prefix} {regex}", {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}
    for scheme in ("always", "first", "never"):
        for split in (False, True):
            yield f"Metaspace {scheme} {split}", {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
    bytelevel = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    for name, members in [("digits, bytes", [{"type": "Digits", "individual_digits": True}, bytelevel]), ("bytes, digits", [bytelevel, {"type": "Digits", "individual_digits": True}]),
                          ("blanks, metaspace", [{"type": "WhitespaceSplit"}, metaspace]), ("punctuation, metaspace", [{"type": "Punctuation", "behavior": "Isolated"}, metaspace])]:
        yield "Sequence " + name, {"type": "Sequence", "pretokenizers": members}


def normalizers():
    for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel"):
        yield kind, {"type": kind}
    for left in (False, True):
        for right in (False, True):
            yield f"Strip {left} {right}", {"type": "Strip", "strip_left": left, "strip_right": right}
    yield "Prepend", {"type": "Prepend", "prepend": "▁"}
    yield "Replace literal", {"type": "Replace", "pattern": {"String": "a"}, "content": "[$0]"}
    yield "Replace empty", {"type": "Replace", "pattern": {"String": "a"}, "content": ""}
    yield "Replace regex", {"type": "Replace", "pattern": {"Regex": r"(\w)\1+|\s{2,}"}, "content": "_"}
    for clean in (False, True):
        for accents in (None, False, True):
            for lower in (False, True):
                yield f"Bert {clean} {accents} {lower}", {"type": "BertNormalizer", "clean_text": clean, "handle_chinese_chars": clean, "strip_accents": accents, "lowercase": lower}
    yield "Precompiled", {"type": "Precompiled", "precompiled_charsmap": charsmap.build(charsmap.RULES)}
    yield "Sequence", {"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"}, {"type": "Strip", "strip_left": True, "strip_right": True}]}
    yield "Sequence empty", {"type": "Sequence", "normalizers": []}


ADDED = [("[M]", {"lstrip": True, "special": True}), ("[R]", {"rstrip": True}), ("tea", {"single_word": True, "normalized": True}), ("<n>", {"normalized": True}), ("[M] x", {}), ("é", {"normalized": True}), ("word", {"lstrip": True, "rstrip": True, "single_word": True})]


def base(model, **parts):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model, **parts}


def word_level(name, added=(), **parts):
    """A tokenizer whose vocabulary is the pieces that its parts make."""
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, "[M] x": 1}, "unk_token": "[UNK]"}
    tok = Tokenizer.from_str(json.dumps(base(model, **parts)))
    tok.add_tokens([AddedToken(c, **{"normalized": False, "special": False, **flags}) for c, flags in added])
    # Two passes: the first finds the pieces between added tokens.
    pieces = set()
    for text in TEXTS:
        e = tok.encode(text)
        for (a, b), i in zip(e.offsets, e.ids):
            pieces.add(text[a:b])
    cut = Tokenizer.from_str(json.dumps(base(model, **parts)))
    for text in list(pieces) + TEXTS:
        normal = cut.normalizer.normalize_str(text) if cut.normalizer else text
        if cut.pre_tokenizer:
            pieces.update(p for p, _ in cut.pre_tokenizer.pre_tokenize_str(normal))
        pieces.add(normal)
    pieces -= {"", "[UNK]", "[M] x"}
    for i, p in enumerate(sorted(pieces)):
        model["vocab"][p] = i + 2
    raw = json.loads(tok.to_str())
    raw["model"] = model
    n = len(model["vocab"])
    for t in raw["added_tokens"]:  # ids after the larger vocabulary
        if t["content"] in model["vocab"]:
            t["id"] = model["vocab"][t["content"]]
        else:
            t["id"] = n
            n += 1
    raw["added_tokens"].sort(key=lambda t: t["id"])
    return case(name, raw)


def case(name, raw, decode=(), pairs=()):
    tok = Tokenizer.from_str(json.dumps(raw))
    out = {"name": name, "tokenizer": raw, "ids": [tok.encode(t, add_special_tokens=False).ids for t in TEXTS]}
    out["decode"] = []
    for ids in decode:
        try:
            out["decode"].append({"ids": ids, "text": tok.decode(ids, skip_special_tokens=False)})
        except BaseException as e:  # the library's Strip panics on a token shorter than stop
            assert "PanicException" in type(e).__name__, e
    out["pairs"] = []
    for a, b in pairs:
        for special in (False, True):
            one, two = tok.encode(a, add_special_tokens=special), tok.encode(a, b, add_special_tokens=special)
            out["pairs"].append({"a": a, "b": b, "special": special, "single": one.ids, "ids": two.ids, "types": two.type_ids})
    return out


def models():
    letters = sorted({c for t in TEXTS for c in t if c.isalnum() and ord(c) < 0x180})
    whitespace = {"type": "WhitespaceSplit"}
    merges = [["a", "b"], ["l", "l"], ["o", "r"], ["w", "or"], ["e", "ll"], ["t", "e"], ["te", "a"], ["a", "a"], ["d", "e"], ["wor", "l"]]
    for fuse in (False, True):
        for unk in (None, "<unk>"):
            for fallback in ("none", "some", "all"):
                vocab = ["<unk>"] + letters + ["".join(m) for m in merges]
                if fallback != "none":
                    vocab += [f"<0x{b:02X}>" for b in range(256) if fallback == "all" or b < 0xD0]
                for pre in (None, whitespace):
                    model = {"type": "BPE", "dropout": None, "unk_token": unk, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": fuse, "byte_fallback": fallback != "none", "ignore_merges": False,
                             "vocab": {t: i for i, t in enumerate(vocab)}, "merges": merges}
                    yield f"BPE {fuse} {unk} {fallback} {pre is not None}", base(model, pre_tokenizer=pre)
    prefixed = [["w", "##o"], ["wo", "##r"], ["##l", "##d"], ["wor", "##ld"], ["##l", "##l"], ["##e", "##ll"]]
    for suffix in (None, "</w>"):
        end = suffix or ""
        tokens = ["<unk>"] + letters + ["##" + c for c in letters] + [c + end for c in letters] + ["##" + c + end for c in letters]
        result = ["wo", "wor", "##ld", "world", "##ll", "##ell"]
        vocab = {}
        for t in tokens + result:
            vocab.setdefault(t, len(vocab))
        model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": "##", "end_of_word_suffix": suffix, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": prefixed}
        yield f"BPE prefix {suffix}", base(model, pre_tokenizer=whitespace)
    tokens = ["<unk>"] + letters + [c + "</w>" for c in letters] + ["or", "ld</w>", "wor", "world</w>"]
    model = {"type": "BPE", "dropout": 0.0, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": "</w>", "fuse_unk": True, "byte_fallback": False, "ignore_merges": True,
             "vocab": {t: i for i, t in enumerate(tokens)}, "merges": [["o", "r"], ["l", "d</w>"], ["w", "or"], ["wor", "ld</w>"]]}
    yield "BPE suffix", base(model, pre_tokenizer=whitespace)
    for chars in (100, 4):
        vocab = ["[UNK]", "Hello", "##,", "world", "##!", "w", "##o", "##r", "##l", "##d", "t", "##e", "##a", "te", "##as", "日", "##本", "aa", "##"]
        yield f"WordPiece {chars}", base({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": chars, "vocab": {t: i for i, t in enumerate(vocab)}}, pre_tokenizer=whitespace)
    for fallback in ("none", "some", "all"):
        vocab = [["<unk>", 0.0], ["▁", -2.0]] + [[c, -4.0 - (i % 7) / 8] for i, c in enumerate(letters)] + [["▁a", -2.5], ["or", -3.0], ["ld", -3.1], ["▁wor", -5.0], ["world", -6.0], ["ll", -3.0], ["aa", -5.0], ["tea", -5.5], ["▁tea", -4.0], ["as", -4.25], ["日本", -3.0], ["\u0335", -9.0], ["or", -2.75], ["ab", -8.0]]
        if fallback != "none":
            vocab += [[f"<0x{b:02X}>", -12.0] for b in range(256) if fallback == "all" or b < 0xE5]
        yield f"Unigram {fallback}", base({"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": fallback != "none"}, pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True})
        yield f"Unigram whole {fallback}", base({"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": fallback != "none"})


def decoders():
    tokens = ["[UNK]", "▁Hello", "▁world", "##ing", "test", " .", "n't", "<0xE2>", "<0x82>", "<0xAC>", "<0x41>", "<0xFF>", "<0x+F>", "<0xG1>", "Ġthe", "Ã©", "Ċ", "end</w>", "mid", " ", "  x ", "▁▁", "▁", "do not", "X", "aXbX", "😀", "ĠâĤ¬", "âĤ", "¬", "with space", " 's", "XX"]
    model = {"type": "WordLevel", "vocab": {t: i for i, t in enumerate(tokens)}, "unk_token": "[UNK]"}
    n = len(tokens)
    ids = [[], [0], [1, 2], [4, 3, 5], [7, 8, 9], [7, 8], [7, 8, 9, 11], [10, 4, 10, 7, 8, 9, 1], [12, 13], [14, 15, 16], [17, 18, 17], [19, 19, 20], [21, 1, 22], [22, 22, 22], [24, 25, 32], [28, 29], [28, 4], [28, 28, 29], [27, 26, 30], [4, 23, 6, 31], [20, 20], [19], [32, 24, 4, 32]]
    ids += [[(i * 7 + j * j * 3 + j) % n for j in range(7)] for i in range(40)]
    kinds = [("none", None), ("ByteLevel", {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}), ("ByteFallback", {"type": "ByteFallback"}), ("Fuse", {"type": "Fuse"}), ("BPEDecoder", {"type": "BPEDecoder", "suffix": "</w>"}),
             ("WordPiece", {"type": "WordPiece", "prefix": "##", "cleanup": True}), ("WordPiece plain", {"type": "WordPiece", "prefix": "##", "cleanup": False}), ("Replace", {"type": "Replace", "pattern": {"String": "X"}, "content": "_"}), ("Replace regex", {"type": "Replace", "pattern": {"Regex": "X+|▁"}, "content": " "})]
    kinds += [(f"Metaspace {s}", {"type": "Metaspace", "replacement": "▁", "prepend_scheme": s, "split": True}) for s in ("always", "first", "never")]
    kinds += [(f"Strip {a} {b}", {"type": "Strip", "content": " ", "start": a, "stop": b}) for a, b in ((1, 0), (0, 1), (2, 0))]
    replace, fallback, fuse, strip = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    stop = {"type": "Strip", "content": " ", "start": 0, "stop": 2}
    for name, members in [("llama", [replace, fallback, fuse, strip]), ("gemma", [replace, fallback, fuse]), ("stop", [fuse, stop]), ("strip first", [strip, fuse]), ("replace last", [fuse, replace]), ("bytes, replace", [kinds[1][1], {"type": "Replace", "pattern": {"String": "e"}, "content": "E"}]),
                          ("fuse, fallback", [fuse, fallback]), ("suffix, fuse, strip", [kinds[4][1], fuse, stop]), ("empty", []), ("fuse, metaspace", [fuse, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}])]:
        kinds.append(("Sequence " + name, {"type": "Sequence", "decoders": members}))
    for name, decoder in kinds:
        yield case("decoder " + name, base(model, decoder=decoder), decode=ids)


def post_processors():
    vocab = {t: i for i, t in enumerate(["[UNK]", "a", "b", "c", "[CLS]", "[SEP]"])}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    token = lambda t, n=0: {"SpecialToken": {"id": t, "type_id": n}}
    seq = lambda s, n=0: {"Sequence": {"id": s, "type_id": n}}
    special = {"[CLS]": {"id": "[CLS]", "ids": [4], "tokens": ["[CLS]"]}, "[X]": {"id": "[X]", "ids": [5, 4], "tokens": ["[SEP]", "[CLS]"]}}
    template = {"type": "TemplateProcessing", "single": [token("[CLS]", 3), seq("A", 2), token("[X]", 1)], "pair": [seq("B", 7), token("[X]", 4), seq("A", 1)], "special_tokens": special}
    byte = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    for name, p in [("none", None), ("Bert", {"type": "BertProcessing", "sep": ["[SEP]", 5], "cls": ["[CLS]", 4]}), ("Roberta", {"type": "RobertaProcessing", "sep": ["[SEP]", 5], "cls": ["[CLS]", 4], "trim_offsets": True, "add_prefix_space": True}),
                    ("ByteLevel", byte), ("Template", template), ("Sequence", {"type": "Sequence", "processors": [byte, template]})]:
        yield case("post " + name, base(model, pre_tokenizer={"type": "WhitespaceSplit"}, post_processor=p), pairs=[("a b", "c"), ("", "a"), ("a", "")])


def main():
    cases = []
    for name, pre in pre_tokenizers():
        cases.append(word_level("pre " + name, pre_tokenizer=pre))
    for name, norm in normalizers():
        cases.append(word_level("norm " + name, normalizer=norm, pre_tokenizer={"type": "WhitespaceSplit"}))
        cases.append(word_level("norm, added " + name, ADDED, normalizer=norm, pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}))
    cases.append(word_level("added", ADDED))
    cases += [case(name, raw) for name, raw in models()]
    cases += list(decoders()) + list(post_processors())
    path = pathlib.Path(__file__).resolve().parents[3] / "models/tokenizer/testdata/golden/components.json.gz"
    value = {"versions": {"tokenizers": tokenizers.__version__}, "texts": TEXTS, "cases": cases}
    path.write_bytes(gzip.compress(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(), 9, mtime=0))
    print(len(cases), "tokenizers,", len(TEXTS), "texts,", path.stat().st_size, "bytes")
    unknown = sum(i == 0 for c in cases if c["name"].startswith(("pre ", "norm")) for ids in c["ids"] for i in ids)
    print(unknown, "unknown pieces in the tests of pre-tokenizers and normalizers")


main()
