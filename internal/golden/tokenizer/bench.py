"""Times Hugging Face tokenizers on one thread, to compare with BenchmarkEncode.

    RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false python bench.py TEXT NAME=FOLDER ...

The text is the first MB of the file TEXT.
"""

import os
import pathlib
import sys
import time

os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers  # noqa: E402


def main():
    print("tokenizers", tokenizers.__version__)
    english = pathlib.Path(sys.argv[1]).read_bytes()[: 1 << 20].decode("utf-8", errors="ignore")
    texts = {"english": english, "run": "abcdefghij" * ((1 << 20) // 10), "chinese": "今天天气很好我们去公园散步吧他昨天没有来因为下雨了" * ((1 << 20) // 75)}
    for arg in sys.argv[2:]:
        name, folder = arg.split("=", 1)
        tok = tokenizers.Tokenizer.from_file(str(pathlib.Path(folder) / "tokenizer.json"))
        tok.no_truncation()
        tok.no_padding()
        for kind, text in texts.items():
            best = 1e9
            for _ in range(3):
                start = time.perf_counter()
                tok.encode(text, add_special_tokens=False)
                best = min(best, time.perf_counter() - start)
            print(f"{name}/{kind}: {best * 1000:.0f} ms, {len(text.encode()) / best / 1e6:.2f} MB/s", flush=True)


main()
