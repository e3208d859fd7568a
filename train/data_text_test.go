package train

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLoadText(t *testing.T) {
	for _, c := range []struct {
		name, content string
		o             DataOptions
		want          []string
	}{
		{"with a rest", "abcdefgh", DataOptions{MaxLength: 4}, []string{"<s>{abc}", "d{efg}", "h{</s>}"}},
		{"without a rest", "abcdefg", DataOptions{MaxLength: 4, NoEOS: true}, []string{"<s>{abc}", "d{efg}"}},
		{"one token left over", "abcdefgh", DataOptions{MaxLength: 4, NoEOS: true}, []string{"<s>{abc}", "d{efg}"}},
		{"shorter than a block", "ab\r\nc", DataOptions{}, []string{"<s>{ab\r\nc</s>}"}},
		{"byte order mark", "\ufeffab", DataOptions{}, []string{"<s>{ab</s>}"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "d.txt")
			require.NoError(t, os.WriteFile(path, []byte(c.content), 0o666))
			d, err := LoadFile(path, wordTokenizer{}, c.o)
			require.NoError(t, err)
			var got []string
			for _, e := range d.examples {
				got = append(got, wordTokenizer{}.marked(e))
			}
			require.Equal(t, c.want, got)
		})
	}
}

func TestLoadTextErrors(t *testing.T) {
	for _, c := range []struct {
		content string
		o       DataOptions
		want    string
	}{
		{"", DataOptions{}, "d.txt: data set is empty"},
		{" \n", DataOptions{}, "d.txt: data set is empty"},
		{"ab\ncaf\xe9", DataOptions{}, "d.txt:2: not valid UTF-8 (byte 7 of the file's text)"},
		{"ab", DataOptions{Fields: []string{"a"}}, `Fields is ["a"], but plain text has no fields`},
		{"ab", DataOptions{MaxLength: 1}, "MaxLength is 1"},
	} {
		_, err := readText([]byte(c.content), "d.txt", wordTokenizer{}, c.o)
		require.ErrorContains(t, err, c.want)
	}
	_, err := LoadText(filepath.Join(t.TempDir(), "none"), wordTokenizer{}, DataOptions{})
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "train: load data: open ")
}

func TestInvalidUTF8(t *testing.T) {
	require.Equal(t, -1, invalidUTF8([]byte("aé€😀\ufffd")))
	require.Equal(t, 3, invalidUTF8([]byte("aé\xf0\x9f")))
	require.Equal(t, 0, invalidUTF8([]byte("\xed\xa0\x80"))) // a surrogate
}

func ExampleLoadJSONL() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "train.jsonl")
	lines := []string{
		`{"question": "2+2?", "answer": " 4"}`,
		`{"question": "3+4?", "answer": " 7"}`,
	}
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o666); err != nil {
		fmt.Println(err)
		return
	}
	// Any *tokenizer.Tokenizer does; this one makes a token of every byte.
	data, err := LoadJSONL(path, wordTokenizer{}, DataOptions{Fields: []string{"question", "answer"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(data.Report())
	fmt.Println(data.Example(0).Labels)
	// Output:
	// 2 examples, 16 tokens, 6 of them targets
	// [-100 -100 -100 -100 -100 42 62 2]
}
