package tokenizer

import (
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// goldenFile is what internal/golden/tokenizer/make.py writes for a tokenizer.
type goldenFile struct {
	Versions   map[string]string `json:"versions"`
	SHA256     string            `json:"sha256"`
	IDs        [][]int32         `json:"ids"`
	Special    [][]int32         `json:"special"`
	Decoded    []string          `json:"decoded"`
	Skipped    []string          `json:"skipped"`
	Odd        [][]int32         `json:"odd"`
	OddDecoded []string          `json:"odd_decoded"`
	Size       int               `json:"size"`
	Pairs      []struct {
		A, B  int
		IDs   []int32
		Types []int32
	}
	Chats []struct {
		Name  string
		Text  *string
		Error *string
	}
}

type goldenInputs struct {
	Strings [][]byte
	Chats   []struct {
		Name     string
		Messages []json.RawMessage
		Options  map[string]json.RawMessage
	}
}

func readGolden(t testing.TB, name string, v any) {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "golden", name+".json.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(z).Decode(v); err != nil {
		t.Fatal(err)
	}
}

// modelFolder finds the folder of a tokenizer; it skips the test if there is none.
func modelFolder(t testing.TB, name string) string {
	t.Helper()
	assets := os.Getenv("GOPEFT_ASSETS")
	if assets == "" {
		// shared/ lies beside the repository.
		assets = filepath.Join("..", "..", "..", "shared", "assets")
	}
	env := func(name string, parts ...string) (string, string) {
		dir := os.Getenv(name)
		if dir == "" {
			return "", "$" + name + " is not set"
		}
		return filepath.Join(append([]string{dir}, parts...)...), ""
	}
	var dir, missing string
	switch name {
	case "tiny-bytelevel", "tiny-spbpe", "tiny-wordpiece", "tiny-unigram":
		return filepath.Join("testdata", "tiny", name[len("tiny-"):])
	case "stories260k":
		dir = filepath.Join(assets, "stories260K", "hf")
	case "gpt2":
		dir = filepath.Join(assets, "lora-gptneo125m")
	case "smollm":
		dir = filepath.Join(assets, "lora-smollm135m-llama")
	case "smollm2":
		dir, missing = env("GOPEFT_SMOLLM2")
	case "minilm":
		dir, missing = env("GOPEFT_MINILM")
	default:
		dir, missing = env("GOPEFT_TOKENIZERS", name)
	}
	if missing != "" {
		t.Skipf("no tokenizer.json of %s: %s", name, missing)
	}
	if _, err := os.Stat(filepath.Join(dir, "tokenizer.json")); err != nil {
		t.Skipf("no tokenizer.json of %s: %v", name, err)
	}
	return dir
}

var allTokenizers = []string{
	"tiny-bytelevel", "tiny-spbpe", "tiny-wordpiece", "tiny-unigram",
	"stories260k", "gpt2", "smollm", "smollm2", "minilm", "llama2", "llama3_1", "qwen3", "gemma3",
}

// loadGolden loads a tokenizer and its golden data; another file of the same
// name than the golden data were made from skips the test.
func loadGolden(t *testing.T, name string) (*Tokenizer, *goldenFile) {
	dir := modelFolder(t, name)
	var g goldenFile
	readGolden(t, name, &g)
	data, err := os.ReadFile(filepath.Join(dir, "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != g.SHA256 {
		t.Skipf("%s/tokenizer.json is not the file that the golden ids were made from", dir)
	}
	tok, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tok, &g
}

func TestGoldenIDs(t *testing.T) {
	var in goldenInputs
	readGolden(t, "strings", &in)
	if len(in.Strings) < 200 {
		t.Fatalf("only %d strings", len(in.Strings))
	}
	for _, name := range allTokenizers {
		t.Run(name, func(t *testing.T) {
			tok, g := loadGolden(t, name)
			if got := tok.VocabSize(); got != g.Size {
				t.Errorf("VocabSize = %d, wanted %d", got, g.Size)
			}
			for i, s := range in.Strings {
				text := string(s)
				checkIDs(t, tok, text, g.IDs[i], EncodeOptions{})
				checkIDs(t, tok, text, g.Special[i], EncodeOptions{AddSpecialTokens: true})
				checkText(t, tok, g.Special[i], g.Decoded[i], DecodeOptions{})
				checkText(t, tok, g.Special[i], g.Skipped[i], DecodeOptions{SkipSpecialTokens: true})
			}
			for i, ids := range g.Odd {
				checkText(t, tok, ids, g.OddDecoded[i], DecodeOptions{})
			}
			for _, p := range g.Pairs {
				got := tok.EncodePair(string(in.Strings[p.A]), string(in.Strings[p.B]), EncodeOptions{AddSpecialTokens: true})
				if !slices.Equal(got.IDs, p.IDs) || !slices.Equal(got.TypeIDs, p.Types) {
					t.Errorf("EncodePair(%q, %q) = %v, wanted ids %v types %v", in.Strings[p.A], in.Strings[p.B], got, p.IDs, p.Types)
				}
			}
		})
	}
}

func checkIDs(t *testing.T, tok *Tokenizer, text string, want []int32, o EncodeOptions) {
	t.Helper()
	if got := tok.Encode(text, o); !slices.Equal(got, want) {
		t.Errorf("Encode(%.80q, %+v)\n got %v\nwant %v", text, o, clip(got), clip(want))
	}
}

func checkText(t *testing.T, tok *Tokenizer, ids []int32, want string, o DecodeOptions) {
	t.Helper()
	if got := tok.Decode(ids, o); got != want {
		t.Errorf("Decode(%v, %+v)\n got %q\nwant %q", clip(ids), o, got, want)
	}
	stream, got := tok.NewStream(o), ""
	for _, id := range ids {
		got += stream.Add(id)
	}
	if got += stream.Flush(); got != want {
		t.Errorf("Stream of %v, %+v\n got %q\nwant %q", clip(ids), o, got, want)
	}
}

func clip(ids []int32) string {
	if len(ids) > 40 {
		return fmt.Sprint(ids[:40], "...", len(ids))
	}
	return fmt.Sprint(ids)
}
