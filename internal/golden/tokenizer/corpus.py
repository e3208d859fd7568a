"""The texts that tokenizers are compared on, and the text the tiny ones learn from.

All of it was written for this project. strings() is a list of bytes: some are
not UTF-8 on purpose.
"""

ZWJ, VS16, ACUTE, ZWNJ = "\u200d", "\ufe0f", "\u0301", "\u200c"

LANGUAGES = [
    "The kettle sang while nobody watched it boil.",
    "Der Kühlschrank brummt, weil die Tür nicht schließt; Größe: 3 m².",
    "Où est passée la clé que j'avais posée près de l'évier ?",
    "El niño comió piñas; ¿quién pagó la cuenta? ¡Nadie!",
    "Il gatto è già salito sull'albero perché c'è un cane.",
    "O avô não trouxe pão, só maçãs e açúcar.",
    "De fietsenmaker in 's-Hertogenbosch heeft 't druk.",
    "Żółw śpi pod kładką, a źrebię się śmieje.",
    "Příliš hlučný vlak přijel o půlnoci.",
    "A hűtőszekrény ajtaja nyikorog, ők mégis alszanak.",
    "Ağaçların altında ışık az; İstanbul'da yağmur var. IĞDIR ığdır",
    "Rạp chiếu phim mở cửa lúc bảy giờ tối, vé rẻ lắm.",
    "Мама мыла окно, а ёжик считал звёзды.",
    "Їжак під'їхав до ґанку й ліг спати.",
    "Η γάτα κοιμάται στον ήλιο· ΟΔΟΣ οδός ὁ ἄνθρωπος",
    "החתול ישן על הגג כל היום. שָׁלוֹם",
    "القطة نائمة فوق السطح منذ الصباح، وَالشَّمْسُ دافئة.",
    "گربه روی پشت‌بام می‌خوابد؛ ۱۲۳۴",
    "बिल्ली छत पर सो रही है। क्या तुमने देखा? १२३",
    "বিড়াল ছাদে ঘুমাচ্ছে। ১২৩",
    "பூனை கூரையில் தூங்குகிறது.",
    "แมวนอนหลับอยู่บนหลังคาตั้งแต่เช้า",
    "ແມວນອນຢູ່ເທິງຫລັງຄາ",
    "កឆ្មាដេកលើដំបូល",
    "猫在屋顶上睡了一整天。今天天气很好!",
    "貓在屋頂上睡了一整天,沒有人叫醒牠。",
    "猫は屋根の上で一日中眠っていた。カタカナもひらがなも。",
    "ヴァイオリン ﾊﾝｶｸ ｶﾞｷﾞｸﾞ ㈱ ㍿",
    "고양이가 지붕 위에서 하루 종일 잤다. 한글 자모 ㄱㄴㄷ",
    "კატა სახურავზე ძინავს.",
    "Կատուն քնած է տանիքին։",
    "ድመቷ ጣሪያ ላይ ተኝታለች።",
    "ᚠᚢᚦᚨᚱᚲ runes and ᏣᎳᎩ syllables",
    "𐍈𐌰𐌿𐍂 𝔉𝔯𝔞𝔨𝔱𝔲𝔯 𝓈𝒸𝓇𝒾𝓅𝓉 𝟘𝟙𝟚",
    "བྱི་ལ་ཁང་པའི་ཐོག་ལ་ཉལ་འདུག",
    "කුරුල්ලා ගසේ කැදැල්ලක් හදයි",
    "Mixed: 东京 Tokyo とうきょう 도쿄 Токио طوكيو",
]

CODE = [
    "def area(r):\n    return 3.14159 * r ** 2  # circle\n",
    "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }",
    "func (t *Tree) Walk(f func(*Node) bool) error {\n\tif t == nil {\n\t\treturn nil\n\t}\n\treturn t.root.walk(f)\n}\n",
    "SELECT name, COUNT(*) AS n FROM pets WHERE age >= 3 GROUP BY name ORDER BY n DESC;",
    "<div class=\"box\" id='x1'><p>Hello &amp; bye</p></div><!-- end -->",
    "{\"key\": [1, 2.5, -3e-7, null, true], \"nested\": {\"a\": \"\\u00e9\"}}",
    "#!/bin/sh\nset -eu\nfor f in *.txt; do\n\techo \"$f: $(wc -l < \"$f\")\"\ndone\n",
    "let x = y?.z ?? `t${1+1}`; // ok\r\nif (x !== null) {\r\n\tfoo(x);\r\n}\r\n",
    "impl<'a, T: Clone> Iterator for Foo<'a, T> { type Item = &'a T; }",
    "a=b==c===d!=e<=f>=g&&h||i->j=>k::l..m...n",
    "\\begin{align} \\frac{\\partial u}{\\partial t} &= \\nabla^2 u \\\\ \\end{align}",
    "x_1, x_2, snake_case_name, camelCaseName, PascalCaseName, SCREAMING_CASE, kebab-case-name",
    "https://example.org/path/to?q=tokens&lang=en#frag user@example.org C:\\Users\\me\\file.txt",
    "    indented four\n        indented eight\n\tone tab\n\t\ttwo tabs\n  \t mixed",
    "0x1F 0b1011 0o17 1_000_000 1e10 .5 5. 0.1+0.2 ==0.30000000000000004",
    "%s %d %05.2f {0} {name!r:>10} ${HOME} $1 @decorator #hashtag",
    "git commit -m \"fix: don't drop the last byte\" && git push --force-with-lease",
    "/* comment */ // line\n# hash\n-- dash\n; semi\n''' doc ''' \"\"\" doc \"\"\"",
]

EMOJI = [
    "😀", "😀😃😄", "I ❤️ tea ☕️ & cake 🍰!", "👍🏽 thumbs 👎🏿",
    f"family: 👨{ZWJ}👩{ZWJ}👧{ZWJ}👦 done", f"🏳{VS16}{ZWJ}🌈 🏴{ZWJ}☠{VS16}",
    "🇩🇪🇫🇷🇯🇵 flags", "1️⃣2️⃣ keycaps #️⃣", "🧑‍🚀🚀 to the 🌕", "☃❄⛄ snow \u2603\ufe0e",
    "text🙂text🙂 text 🙂 text", "🫠🫶🪿 new ones", "♠♥♦♣ ★☆ ♪♫ ✓✗ →←↑↓ ∀∃∈∉ ≤≥≠≈ ∑∏∫",
    "「引用」『二重』【墨】〈角〉《書》〜…—–‐‑", "“curly” ‘single’ «guillemets» ‹single› „low“ ‚low‘",
    "€100 £50 ¥1000 ₹500 ₿1 ¢99 ₩ ₺ ₽", "½ ¼ ¾ ⅓ ² ³ ¹ ₂ ⁿ Ⅷ ⅷ ① ⒈ ㊀",
    "™ ® © ℠ № ℡ ℃ ℉ Å Ω K", "┌─┬─┐│ │ │└─┴─┘ ░▒▓█ ▁▂▃▄▅▆▇",
]

BLANKS = [
    "", " ", "  ", "   ", "    ", "        ", " " * 15, " " * 16, " " * 17, " " * 33, " " * 100,
    "\n", "\n\n", "\n\n\n", "\n\n\n\n", "\n" * 10, "\n" * 40, "\t", "\t\t", "\t\t\t\t", "\t" * 20,
    "\r", "\r\n", "\r\n\r\n", "\n\r", "\r\r\n\n", " \n", "\n ", " \n ", "  \n  \n  ", "\t\n\t\n",
    "a b", "a  b", "a   b", "a    b", "a     b", " a", "  a", "   a", "a ", "a  ", "a   ", " a ", "  a  ",
    "a\nb", "a\n\nb", "a\n\n\nb", "a \nb", "a\n b", "a \n b", "a  \n  b", "a\tb", "a\t\tb", "a \t b", "a\t \tb",
    "a\r\nb", "a\r\n\r\nb", "word\n    indented", "word\n\n    indented\n\n", "trailing newline\n", "\nleading newline",
    "\u00a0", "a\u00a0b", "a\u00a0\u00a0b", " \u00a0 ", "a\u2003b", "a\u3000b", "\u3000\u3000全角", "a\u2028b\u2029c", "a\u0085b",
    "a\u200bb", "a\u200b b", "\ufeffbom", "a\ufeffb", "a\x0bb\x0cc", "a\u202fb\u205fc\u1680d", "▁", "a▁b", "▁▁a", " ▁ a", "a ▁▁▁ b",
]

NUMBERS = [
    "0", "1", "12", "123", "1234", "12345", "123456", "1234567", "12345678901234567890", " 1", " 12 ", "1 2 3",
    "3.14159", "1,234,567.89", "-5", "+5", "1e-9", "50%", "$12.50", "2024-02-29T13:45:07.123Z", "+49 (0)30 1234-567",
    "v1.2.3-rc.4", "a1b2c3", "x86_64", "4K60", "1st 2nd 3rd 100th", "٠١٢٣٤٥", "०१२३", "１２３４", "ⅣⅨ", "1½", "10²³", "IPv6 ::1 fe80::1%eth0",
    "1/2 3:4 5-6", "99 bottles, 98 bottles, 97", "room101", "007", "1\n2\n3", "2+2=4", "८८",
]

CONTRACTIONS = [
    "I'm you're he's she'll we've they'd don't can't", "I'M YOU'RE HE'S SHE'LL WE'VE THEY'D DON'T",
    "I’m you’re he’s don’t", "'s 't 're 've 'm 'll 'd", "''s '''", "rock'n'roll o'clock 'tis 'twas", "the dogs' bowls, the dog's bowl",
    "'", "''", "'a", "a'", "a'b", "'sa", "'reb", "it's'it's", "x's\n's", " 's", "1's", "!'s", "é's", "'S'T'RE'Re'rE", "'ſ ſ's",
    "n't do not isn't is n't", "y'all'd've", "'LL'll'Ll", "won 't", "L'été d'hiver", "'dx 'mx 'tx",
]

MARKS = [
    f"e{ACUTE}", "é", f"cafe{ACUTE} café", "n\u0303 ñ", "A\u030a Å \u212b", "o\u0308\u0304 ȫ", "\u1e9b\u0323", "q\u0307\u0323 q\u0323\u0307",
    "a" + "\u0300\u0301\u0302\u0303" * 3 + "b", "Z" + "\u0335\u0321\u0353\u0318" * 12 + "x", "\u0301", " \u0301a", "ﬁ ﬂ ﬀ ﬃ ſt",
    "각 각 각", "ㄱㅏㄱ", "\u0915\u094d\u0937", f"\u0915\u094d{ZWNJ}\u0937", "ｆｕｌｌ ｗｉｄｔｈ", "Ǆ ǅ ǆ ẞ ß", "İ i̇ ı I",
    "Ά ΄Α ὰ ά", "ａ́", "u\u0308ber über", "\u0344 \u0374 \u037e \u0387", "ऩ ऩ", "הּ שׁ", "豈 更 車",
]

CONTROLS = [
    "\x00", "a\x00b", "\x01\x02\x03", "\x07bell", "\x1b[31mred\x1b[0m", "\x7f", "a\x7fb", "\x80\x81".encode("latin-1").decode("latin-1"),
    "\u200e\u200f", "\u202aab\u202c", "\u2060", "\ufffd", "a\ufffdb", "\ufffe\uffff", "\ue000\uf8ff", "\U000f0000", "\U0010ffff", "\u0378", "\u00ad soft\u00adhyphen",
    "\u2066x\u2069", "\ufff9\ufffa\ufffb", "\U000e0041\U000e007f",
]

SPECIALS = [
    "<s>", "</s>", "<unk>", "<s>hello</s>", "a <s> b", "a<s>b", " <s> ", "<s><s>", "<|endoftext|>", "a<|endoftext|>b", "a <|endoftext|> b",
    "<|im_start|>user\nhi<|im_end|>\n", "<|begin_of_text|>x<|eot_id|>", "<|start_header_id|>system<|end_header_id|>\n\nhi",
    "<bos>a<eos>", "<start_of_turn>user\nhi<end_of_turn>\n", "[CLS] a [SEP] b [MASK] [PAD] [UNK]", "[MASK]", "a[MASK]b", "x [MASK]", "<pad>",
    "<0x41>", "<0xE2><0x82><0xAC>", "<think>\nhm\n</think>\n\nyes", "<tool_call>{\"a\": 1}</tool_call>", "<|im_start", "|im_end|>", "<|IM_START|>", "< s >", "<<s>>",
    "<unused7>", "<image_soft_token>", "<mask>", "##ing", "a##b", "<|reserved_special_token_5|>", "<filename>main.go<file_sep>", "<tag>  spaced  </tag>",
]

LONG = [
    "a" * 100, "a" * 1000, "ab" * 700, "supercalifragilisticexpialidocious" * 20, "A" * 257, "=" * 80, "-" * 200, "." * 300, "!?" * 60,
    "あ" * 150, "語" * 90, "ж" * 120, "😀" * 40, "1" * 101, "0123456789" * 30, "aB3_" * 64, "\u0301" * 40, "e" + "\u0301" * 70, "한" * 64,
    "the " * 200, "word\n" * 60, "x" * 99 + "y", "q" * 100 + " r", "q" * 101 + " r", "/usr/local/lib/" * 20, "ATGC" * 128, "(((((((((([[[[[[[[[[{{{{{{{{{{",
    "pneumono" + "ultra" * 30 + "microscopic", "zzz" * 50 + " " + "zzz" * 50,
]

INVALID = [
    b"\xff", b"abc\xff", b"\xffabc", b"a\xffb", b"\xc3", b"caf\xc3", b"\xc3\x28", b"\xe2\x82", b"\xe2\x82\x41", b"\xe2\x28\xa1", b"\xf0\x9f\x98", b"\xf0\x9f\x98 x",
    b"\xf0\x9f\x98\x80\x80", b"\xed\xa0\x80", b"\xed\xb0\x80 low", b"\xc0\x80", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xfe\xfe\xff\xff",
    b"\x80\x81\x82", b"\xe2\x82\xac ok \xe2\x82", b"good \xf0\x28\x8c\xbc bad", b"\xf0\x9f\xf0\x9f\x98\x80", b"\xe1\x80\xe2\x80\x80\xe2",
]

MISC = [
    "Hello, world!", "hello world", " hello world", "Hello  World", "HELLO WORLD", "hElLo", "Don't panic; it's only a test...", "What?! No way!!", "wait…what",
    "a.b.c", "a,b;c:d", "(a) [b] {c} <d>", "e.g. i.e. etc.", "end.Start", "one-two—three", "@user #tag $cash %pct ^hat &amp *star", "~`!@#$%^&*()_+-=[]{}|;':\",./<>?",
    "The quick red fox, the lazy grey dog and 3 hens; then: silence.", "Once upon a time, there was a little girl named Mia. She loved to play outside in the rain.",
    "A", "a", "é", "字", "?", "Ab", "aB", "antidisestablishmentarianism", "unbelievably", "tokenization", "Tokenizers tokenise tokens.",
    "I saw $5.00, not €5,00!", "ALLCAPS lowercase MiXeD", "naïve façade résumé coöperate", "C++ C# F# .NET Node.js", "x=1;y=2", "foo(bar)[baz]{qux}",
    "Line one.\nLine two.\n\nParagraph two.", "- item\n- item\n  - sub\n1. one\n2. two", "| a | b |\n|---|---|\n| 1 | 2 |", "> quote\n\n# Title\n\n**bold** _it_ `code`",
    "Q: Why?\nA: Because.", "User: hi\nAssistant: hello", "...", "--", "!", "\"\"", "\\n is not \n", "\\", "\\\\", "100% sure", "she said \"no\" , then left .",
]

GROUPS = [LANGUAGES, CODE, EMOJI, BLANKS, NUMBERS, CONTRACTIONS, MARKS, CONTROLS, SPECIALS, LONG, MISC]


def strings():
    out = [s.encode("utf-8") for g in GROUPS for s in g] + INVALID
    assert len(set(out)) >= 200
    return out


def training_text():
    """Some 60 kB in which the tiny tokenizers find their merges."""
    who = ["the cat", "a small dog", "my neighbour", "the old sailor", "nobody", "Mia", "her brother", "the baker", "every child", "this machine"]
    does = ["watches", "paints", "forgets", "carries", "is looking for", "has found", "doesn't like", "would rather sell", "counts", "remembers"]
    what = ["the red kettle", "three boxes of apples", "an umbrella", "the longest bridge", "some bread", "twenty-one stones", "a letter", "the garden gate", "its own tail", "the train to Łódź"]
    when = ["in the morning", "at 7:45", "before the rain", "on Sunday", "again and again", "without a word", "after the 2nd bell", "when it's dark", "by the river", "all day long"]
    lines = []
    for i, w in enumerate(who):
        for j, d in enumerate(does):
            for k in range(6):
                n = (i * 7 + j * 3 + k * 5)
                lines.append(f"{w} {d} {what[n % 10]} {when[(n // 3 + k) % 10]}.")
    extra = [s for g in (LANGUAGES, CODE, EMOJI, MISC, NUMBERS) for s in g]
    return lines + extra + ["".join(extra)]


# Conversations for chat templates: (name, messages, keyword arguments).
SYSTEM = {"role": "system", "content": "You answer in one short sentence."}
USER = {"role": "user", "content": "How many legs has a spider?"}
REPLY = {"role": "assistant", "content": "Eight."}
MORE = {"role": "user", "content": "  And an octopus?\n"}
THOUGHT = {"role": "assistant", "content": "<think>\nArms, not legs.\n</think>\n\nIt has eight arms."}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place, in °C & words.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "description": "A <town>"}, "days": {"type": "integer", "enum": [1, 3]}},
            "required": ["place"],
        },
    },
}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"place": "Łódź", "days": 3}}}]}
RESULT = {"role": "tool", "content": "{\"sky\": \"grey\", \"temp\": 7.5}"}

CHATS = [
    ("user", [USER], {}),
    ("user, prompt", [USER], {"add_generation_prompt": True}),
    ("system", [SYSTEM, USER], {"add_generation_prompt": True}),
    ("turns", [USER, REPLY, MORE], {"add_generation_prompt": True}),
    ("system and turns", [SYSTEM, USER, REPLY, MORE, THOUGHT], {}),
    ("thought, then question", [USER, THOUGHT, MORE], {"add_generation_prompt": True}),
    ("no thinking", [SYSTEM, USER], {"add_generation_prompt": True, "enable_thinking": False}),
    ("tools", [SYSTEM, USER], {"tools": [WEATHER], "add_generation_prompt": True}),
    ("tools without system", [USER], {"tools": [WEATHER, WEATHER]}),
    ("tool call", [USER, CALL, RESULT], {"tools": [WEATHER], "add_generation_prompt": True}),
    ("tool results", [USER, CALL, RESULT, RESULT, REPLY, MORE], {"tools": [WEATHER]}),
    ("two users", [USER, MORE], {}),
    ("assistant first", [REPLY, USER], {}),
    ("parts", [{"role": "user", "content": [{"type": "text", "text": " Look: "}, {"type": "image"}, {"type": "text", "text": "what is it?"}]}], {"add_generation_prompt": True}),
    ("reasoning field", [USER, {"role": "assistant", "content": "Eight.", "reasoning_content": "Count them.\n"}, MORE, {"role": "assistant", "content": "Arms.", "reasoning_content": "\nHm."}], {}),
    ("empty content", [{"role": "user", "content": ""}], {"add_generation_prompt": True}),
    ("unicode", [{"role": "user", "content": "Ça va ? 你好 👩\u200d🚀 \"quoted\" \\ <b>&amp;</b>"}], {"add_generation_prompt": True}),
]
