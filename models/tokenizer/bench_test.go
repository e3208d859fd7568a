package tokenizer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// benchmarkText is 1 MB of English if it is there, else text of our own.
func benchmarkText(b *testing.B) string {
	assets := os.Getenv("GOPEFT_ASSETS")
	if assets == "" {
		assets = filepath.Join("..", "..", "..", "shared", "assets")
	}
	data, err := os.ReadFile(filepath.Join(assets, "tinyshakespeare", "input.txt"))
	if err != nil {
		var in goldenInputs
		readGolden(b, "strings", &in)
		for len(data) < 1<<20 {
			for _, s := range in.Strings {
				data = append(append(data, s...), '\n')
			}
		}
	}
	return string(data[:1<<20])
}

// BenchmarkEncode is to be compared with internal/golden/tokenizer/bench.py.
func BenchmarkEncode(b *testing.B) {
	english := benchmarkText(b)
	texts := map[string]string{
		"english": english,
		"blanks":  strings.Repeat(" ", 1<<20),
		"run":     strings.Repeat("abcdefghij", 1<<20/10),
		"chinese": strings.Repeat("今天天气很好我们去公园散步吧他昨天没有来因为下雨了", 1<<20/75),
	}
	for _, name := range allTokenizers {
		b.Run(name, func(b *testing.B) {
			tok, err := Load(modelFolder(b, name))
			if err != nil {
				b.Fatal(err)
			}
			for _, kind := range []string{"english", "blanks", "run", "chinese"} {
				b.Run(kind, func(b *testing.B) {
					b.SetBytes(int64(len(texts[kind])))
					for b.Loop() {
						tok.Encode(texts[kind], EncodeOptions{})
					}
				})
			}
		})
	}
}

// BenchmarkLoad is the time to read a model folder's tokenizer.
func BenchmarkLoad(b *testing.B) {
	for _, name := range allTokenizers {
		b.Run(name, func(b *testing.B) {
			dir := modelFolder(b, name)
			for b.Loop() {
				if _, err := Load(dir); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
