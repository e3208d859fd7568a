package train

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// loadMarked loads JSONL text and returns its examples as marked text.
func loadMarked(content string, o DataOptions) ([]string, *Dataset, error) {
	tok := wordTokenizer{}
	d, err := readJSONL(strings.NewReader(content), "d.jsonl", tok, o)
	if err != nil {
		return nil, nil, err
	}
	var marked []string
	for _, e := range d.examples {
		marked = append(marked, tok.marked(e))
	}
	return marked, d, nil
}

func TestLoadJSONL(t *testing.T) {
	for _, c := range []struct {
		name, content string
		o             DataOptions
		want          []string
	}{
		{"text", `{"text":"ab"}` + "\n" + `{"text":"c","id":7}`, DataOptions{}, []string{"<s>{ab</s>}", "<s>{c</s>}"}},
		{"prompt and completion", `{"prompt":"ab","completion":"c"}`, DataOptions{}, []string{"<s>ab{c</s>}"}},
		{"messages", `{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}`, DataOptions{},
			[]string{"[user]\na</s>\n[assistant]\n{b</s>}\n"}},
		{"a tool call", `{"tools":[{"name":"f"}],"messages":[{"role":"user","content":"a"},{"role":"assistant","tool_calls":[1]}]}`, DataOptions{},
			[]string{"[{\"name\":\"f\"}]\n[user]\na</s>\n[assistant]\n{[1]</s>}\n"}},
		{"no tools", `{"tools":[],"messages":[{"role":"assistant","content":"b","tool_calls":null}]}`, DataOptions{},
			[]string{"[{assistant]\nb</s>}\n"}},
		{"two named fields", `{"q":"a","text":"x","a":"b"}`, DataOptions{Fields: []string{"q", "a"}, Separator: " "}, []string{"<s>a {b</s>}"}},
		{"one named field", `{"q":"a","text":"x"}`, DataOptions{Fields: []string{"q"}}, []string{"<s>{a</s>}"}},
		{"named messages", `{"chat":[{"role":"assistant","content":"b"}]}`, DataOptions{Fields: []string{"chat"}}, []string{"[{assistant]\nb</s>}\n"}},
		{"blank lines, CRLF, no end", "\n\r\n  {\"text\":\"a\"} \r\n\n\t\n{\"text\":\"b\"}", DataOptions{}, []string{"<s>{a</s>}", "<s>{b</s>}"}},
		{"byte order mark", "\ufeff{\"text\":\"a\"}\n", DataOptions{}, []string{"<s>{a</s>}"}},
		{"byte order mark on a blank line", "\ufeff\n{\"text\":\"a\"}\n", DataOptions{}, []string{"<s>{a</s>}"}},
		{"escapes", `{"text":"\u00e9\n\"\ud83d\ude00"}`, DataOptions{}, []string{"<s>{é\n\"😀</s>}"}},
		{"last of equal keys", `{"text":"a","text":"b"}`, DataOptions{}, []string{"<s>{b</s>}"}},
		{"nothing to learn", "{\"text\":\"\"}\n{\"text\":\"b\"}", DataOptions{}, []string{"<s>{b</s>}"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, _, err := loadMarked(c.content, c.o)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

func TestLoadJSONLErrors(t *testing.T) {
	const good = `{"text":"a"}` + "\n"
	for _, c := range []struct {
		name, content string
		o             DataOptions
		want          string
	}{
		{"empty", "", DataOptions{}, "d.jsonl: data set is empty"},
		{"blank", "\n \r\n", DataOptions{}, "d.jsonl: data set is empty"},
		{"not JSON", good + "\n" + `{"text": oops}`, DataOptions{}, "d.jsonl:3: not JSON: invalid character 'o' looking for beginning of value (byte 10)"},
		{"first line not JSON", "hello\n", DataOptions{}, "d.jsonl:1: not JSON: invalid character 'h'"},
		{"cut off", good + `{"text":"b`, DataOptions{}, "d.jsonl:2: not JSON: unexpected end of JSON input (byte 10)"},
		{"two objects", good + `{"text":"b"} {"text":"c"}`, DataOptions{}, "d.jsonl:2: not JSON: invalid character '{' after top-level value"},
		{"array of all", "[\n{\"text\":\"a\"}]", DataOptions{}, "d.jsonl:1: want one JSON object per line (JSONL), got an array"},
		{"number", good + "12", DataOptions{}, "d.jsonl:2: want a JSON object, got number"},
		{"null", "null", DataOptions{}, "d.jsonl:1: want a JSON object, got null"},
		{"not UTF-8", good + "{\"text\":\"\xff\"}", DataOptions{}, "d.jsonl:2: not valid UTF-8"},
		{"wrong type", good + `{"text":12}`, DataOptions{}, `d.jsonl:2: field "text": want a string, got number`},
		{"null field", good + `{"text":null}`, DataOptions{}, `d.jsonl:2: field "text": want a string, got null`},
		{"missing later", good + `{"txt":"a","b":1}`, DataOptions{}, `d.jsonl:2: no field "text" among "b", "txt"`},
		{"no known field", `{"b":1,"a":"x"}`, DataOptions{}, `d.jsonl:1: want the field "text", or "prompt" and "completion", or "messages"; found "a", "b": name the fields to use`},
		{"no field", `{}`, DataOptions{}, `found no fields`},
		{"ambiguous", `{"text":"a","messages":[]}`, DataOptions{}, "d.jsonl:1: text and messages could both be meant: name the fields to use"},
		{"named missing", good, DataOptions{Fields: []string{"q", "a"}}, `d.jsonl:1: no field "q" among "text"`},
		{"one named of a wrong type", `{"q":true}`, DataOptions{Fields: []string{"q"}}, `d.jsonl:1: field "q": want a string or a list of messages, got boolean`},
		{"messages not a list", `{"messages":"hi"}`, DataOptions{}, `d.jsonl:1: field "messages": want a list of messages, got string`},
		{"message not an object", `{"messages":["hi"]}`, DataOptions{}, `field "messages": message 1: want an object, got string`},
		{"message without role", `{"messages":[{"content":"x"}]}`, DataOptions{}, `field "messages": message 1: no field "role" among "content"`},
		{"empty role", `{"messages":[{"role":"","content":"x"}]}`, DataOptions{}, `message 1: field "role" is empty`},
		{"content not text", `{"messages":[{"role":"user","content":12}]}`, DataOptions{}, `message 1: field "content": want a string, got number`},
		{"no content", `{"messages":[{"role":"user"}]}`, DataOptions{}, `message 1: field "content": want a string, got nothing`},
		{"null content", `{"messages":[{"role":"user","content":null}]}`, DataOptions{}, `message 1: field "content": want a string, got null`},
		{"tools not a list", `{"tools":"f","messages":[]}`, DataOptions{}, `field "tools": want a list of tools, got string`},
		{"chat template", `{"messages":[{"role":"nobody","content":"x"}]}`, DataOptions{}, "d.jsonl:1: chat messages: unknown role nobody"},
		{"all dropped", `{"text":""}`, DataOptions{}, "d.jsonl: none of the 1 examples has anything to learn"},
		{"prompts too long", `{"prompt":"abcdef","completion":"g"}`, DataOptions{MaxLength: 4}, "none of the 1 examples"},
		{"short MaxLength", good, DataOptions{MaxLength: 1}, "MaxLength is 1, want 2 or more, or 0 for 512"},
		{"three fields", good, DataOptions{Fields: []string{"a", "b", "c"}}, `Fields is ["a" "b" "c"], want the names of one or two fields`},
		{"empty field", good, DataOptions{Fields: []string{""}}, `Fields is [""], want`},
		{"same field", good, DataOptions{Fields: []string{"a", "a"}}, `Fields names "a" twice`},
		{"small bucket", good, DataOptions{Buckets: []int{2}}, "d.jsonl: the longest example has 3 tokens, the largest bucket 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := loadMarked(c.content, c.o)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestLoadJSONLFile(t *testing.T) {
	dir := t.TempDir()
	_, err := LoadJSONL(filepath.Join(dir, "none.jsonl"), wordTokenizer{}, DataOptions{})
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "train: load data: open ")
	_, err = LoadJSONL(dir, wordTokenizer{}, DataOptions{})
	require.ErrorContains(t, err, "is a directory")

	path := filepath.Join(dir, "d.jsonl")
	require.NoError(t, os.WriteFile(path, []byte("{\"text\":\"abcdef\"}\n{\"text\":\"\"}\n{\"text\":\"g\"}\n"), 0o666))
	d, err := LoadFile(path, wordTokenizer{}, DataOptions{MaxLength: 4, Packing: true})
	require.NoError(t, err)
	require.Equal(t, Report{Examples: 2, Rows: 2, Tokens: 7, Targets: 5, Truncated: 1, Dropped: 1}, d.Report())
	require.Equal(t, "2 examples, 7 tokens, 5 of them targets, 1 truncated, 1 dropped with nothing to learn", d.Report().String())
	require.Equal(t, []int{4}, d.Buckets())
	require.Equal(t, []int{0}, d.Example(0).Starts)
	_, err = LoadJSONL(path, wordTokenizer{}, DataOptions{MaxLength: -1})
	require.ErrorContains(t, err, "train: load data: MaxLength is -1")
}

// Many chunks on many goroutines: order kept, and the error that of the first
// bad line.
func TestLoadJSONLParallel(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(8))
	var content strings.Builder
	const lines = 5000
	for i := range lines {
		fmt.Fprintf(&content, "{\"text\":\"%d %s\"}\n", i, strings.Repeat("x", i%700))
	}
	got, _, err := loadMarked(content.String(), DataOptions{MaxLength: 8})
	require.NoError(t, err)
	require.Len(t, got, lines)
	for i, text := range got {
		require.True(t, strings.HasPrefix(text, fmt.Sprintf("<s>{%d ", i)), "example %d: %s", i, text)
	}
	all := strings.SplitAfter(content.String(), "\n")
	for _, i := range []int{4321, 3000, 1234} { // the earlier ones overtake the later
		all[i] = "bad\n"
		_, _, err = loadMarked(strings.Join(all, ""), DataOptions{})
		require.ErrorContains(t, err, fmt.Sprintf("d.jsonl:%d: not JSON", i+1))
	}
}

func TestLineReader(t *testing.T) {
	long := strings.Repeat("x", 3<<20) // more than the buffer
	lines := newLineReader(iotest.HalfReader(strings.NewReader("a\n" + long + "\r\n\nb")))
	for _, want := range []struct {
		number int
		line   string
	}{{1, "a"}, {2, long}, {4, "b"}} {
		line, err := lines.next()
		require.NoError(t, err)
		require.Equal(t, want.number, lines.number)
		require.Equal(t, want.line, string(line))
	}
	_, err := lines.next()
	require.Equal(t, io.EOF, err)

	lines = newLineReader(strings.NewReader("ab\n" + long + "\n"))
	lines.limit = 2 << 20
	_, err = lines.next()
	require.NoError(t, err)
	_, err = lines.next()
	require.ErrorContains(t, err, "line of more than 2097152 bytes")
	require.Equal(t, 2, lines.number)

	broken := errors.New("disk on fire")
	_, err = readJSONL(io.MultiReader(strings.NewReader("{\"text\":\"a\"}\n{\"te"), iotest.ErrReader(broken)), "d.jsonl", wordTokenizer{}, DataOptions{})
	require.ErrorIs(t, err, broken)
	require.ErrorContains(t, err, "d.jsonl:2: ")
}

// Whatever the line, reading it gives a sample or an error, and a text or a
// prompt that was read is one that JSON can write again.
func FuzzParseRecord(f *testing.F) {
	for _, seed := range []string{
		`{"text":"a"}`, `{"prompt":"a","completion":"\u00e9\ud800"}`, `{"messages":[{"role":"user","content":"x"}]}`,
		`{"messages":[{"role":1}]}`, `{"text":[`, `[]`, `null`, `{"a":{}}`, "\xff", `{"text":"a","text":1e999}`, ` {} `,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		lines := newLineReader(strings.NewReader(string(line)))
		line, err := lines.next()
		if err != nil {
			require.Equal(t, io.EOF, err)
			return
		}
		r, err := parseRecord(line)
		if err != nil {
			return
		}
		for _, fields := range [][]string{nil, {"text"}, {"prompt", "completion"}} {
			format, err := formatOf(r, fields)
			if err != nil {
				continue
			}
			s, err := format.read(r)
			if err != nil {
				continue
			}
			for _, m := range s.chat.messages {
				require.NotEmpty(t, m.Role)
			}
			e, _, err := labeler{wordTokenizer{}, DataOptions{MaxLength: 64}}.example(format.kind, s)
			if err == nil {
				require.NoError(t, e.validate(LabelNextToken))
				require.LessOrEqual(t, len(e.IDs), 64)
			}
		}
	})
}
