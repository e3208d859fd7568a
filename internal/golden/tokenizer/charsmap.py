"""Builds a SentencePiece precompiled_charsmap: a darts-clone double array and its strings."""

import base64
import struct

ACUTE = "\u0301"

RULES = {
    "ﬁ": "fi", "ﬂ": "fl", "ſ": "s", "①": "1", "②": "2", "½": "1/2", "…": "...", "\u3000": " ", "\u00a0": " ", "\t": " ", "\n": " ", "\r": " ",
    "\u200b": "", "\ufeff": "", "\u00ad": "", "\x07": "", "\u200d": " ", "e" + ACUTE: "é", "a" + ACUTE: "á", "K": "K", "Å": "Å", "ﾊ": "ハ", "ﾊﾞ": "バ", "～": "~", "㈱": "(株)",
    "가": "가", "Ω": "Ω", "\ufffd": "?",
    **{chr(0xFF01 + i): chr(0x21 + i) for i in range(94)},
}


def build(rules):
    texts, offsets = bytearray(), {}
    for to in rules.values():
        b = to.encode()
        if b not in offsets:
            offsets[b] = len(texts)
            texts += b + b"\0"
    root = {}
    for key, to in rules.items():
        node = root
        for c in key.encode():
            node = node.setdefault(c, {})
        node[0] = offsets[to.encode()]
    units, used, todo = {0: 0}, {0}, [(0, root)]
    while todo:
        at, node = todo.pop(0)
        base = 1
        while any(base ^ c in used for c in node) or base ^ at >= 1 << 21:
            base += 1
        used |= {base ^ c for c in node}
        units[at] = units.get(at, 0) | (base ^ at) << 10 | (1 << 8 if 0 in node else 0)
        for c, child in sorted(node.items()):
            if c == 0:
                units[base] = 1 << 31 | child
            else:
                units[base ^ c] = c
                todo.append((base ^ c, child))
    size = (max(units) | 0xFF) + 1
    array = b"".join(struct.pack("<I", units.get(i, 0)) for i in range(size))
    return base64.b64encode(struct.pack("<I", len(array)) + array + bytes(texts)).decode()
