package train

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/stretchr/testify/require"
)

// The tokenizers here are the project's own tiny ones.
func tinyTokenizer(t *testing.T, name string) *tokenizer.Tokenizer {
	t.Helper()
	tok, err := tokenizer.Load(filepath.Join("..", "models", "tokenizer", "testdata", "tiny", name))
	require.NoError(t, err)
	return tok
}

func TestLoadWithRealTokenizer(t *testing.T) {
	const lines = `{"messages":[{"role":"user","content":"Hi there"},{"role":"assistant","content":"Hello!"},{"role":"user","content":"More"},{"role":"assistant","content":"No."}]}` + "\n"
	path := filepath.Join(t.TempDir(), "chats.jsonl")
	require.NoError(t, os.WriteFile(path, []byte(lines), 0o666))
	tok := tinyTokenizer(t, "bytelevel")
	d, err := LoadJSONL(path, tok, DataOptions{})
	require.NoError(t, err)
	require.Equal(t, []string{"Hello!<|im_end|>", "No.<|im_end|>"}, targetTexts(tok, d.Example(0)))

	_, err = LoadJSONL(path, tinyTokenizer(t, "unigram"), DataOptions{})
	require.ErrorIs(t, err, tokenizer.ErrNoChatTemplate)
	require.ErrorContains(t, err, "chats.jsonl:1: ")

	require.NoError(t, os.WriteFile(path, []byte(`{"prompt":"The answer is","completion":" yes"}`), 0o666))
	// Decoders may drop the blank; the last tokenizer ends all it encodes itself.
	for name, want := range map[string][]string{"bytelevel": {" yes"}, "spbpe": {"yes", " yes"}, "unigram": {"yes</s>", " yes</s>"}} {
		tok := tinyTokenizer(t, name)
		d, err := LoadJSONL(path, tok, DataOptions{NoEOS: true})
		require.NoError(t, err)
		texts := targetTexts(tok, d.Example(0))
		require.Len(t, texts, 1, name)
		require.Contains(t, want, texts[0], name)
	}
}
