package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"
)

func loadTiny(t testing.TB, name string) *Tokenizer {
	t.Helper()
	tok, err := Load(filepath.Join("testdata", "tiny", name))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// folder is a model folder in memory with a tiny tokenizer.json and other files.
func folder(files map[string]string) fstest.MapFS {
	fsys := fstest.MapFS{"m/tokenizer.json": {Data: []byte(
		`{"version":"1.0","added_tokens":[{"id":3,"content":"<s>","special":true},{"id":4,"content":"</s>","special":true}],` + tinyBPE + `}`)}}
	for name, text := range files {
		fsys["m/"+name] = &fstest.MapFile{Data: []byte(text)}
	}
	return fsys
}

func TestSpecialTokensAsText(t *testing.T) {
	tok := loadTiny(t, "bytelevel")
	const text = "a<|im_end|>b<tag>c"
	end, _ := tok.ID("<|im_end|>")
	tag, _ := tok.ID("<tag>")
	if ids := tok.Encode(text, EncodeOptions{}); !slices.Contains(ids, end) || !slices.Contains(ids, tag) {
		t.Errorf("ids %v, wanted %d and %d in them", ids, end, tag)
	}
	ids := tok.Encode(text, EncodeOptions{SpecialTokensAsText: true})
	if slices.Contains(ids, end) || !slices.Contains(ids, tag) {
		t.Errorf("ids %v, wanted %d and not %d in them: only special tokens are text", ids, tag, end)
	}
	if got := tok.Decode(ids, DecodeOptions{SkipSpecialTokens: true}); got != text {
		t.Errorf("decoded %q, wanted %q", got, text)
	}
}

func TestSpecialTokenNames(t *testing.T) {
	type ids struct {
		bos, eos, pad int32 // -1: none
		all           []int32
	}
	for name, c := range map[string]struct {
		files map[string]string
		want  ids
	}{
		"no files":          {nil, ids{-1, -1, -1, nil}},
		"strings":           {map[string]string{"tokenizer_config.json": `{"bos_token":"<s>","eos_token":"</s>","pad_token":null}`}, ids{3, 4, -1, []int32{4}}},
		"objects":           {map[string]string{"tokenizer_config.json": `{"bos_token":{"__type":"AddedToken","content":"<s>"},"eos_token":{"content":"</s>"}}`}, ids{3, 4, -1, []int32{4}}},
		"special map":       {map[string]string{"special_tokens_map.json": `{"eos_token":{"content":"</s>"},"pad_token":"b"}`}, ids{-1, 4, 1, []int32{4}}},
		"config wins":       {map[string]string{"special_tokens_map.json": `{"eos_token":"a"}`, "tokenizer_config.json": `{"eos_token":"</s>"}`}, ids{-1, 4, -1, []int32{4}}},
		"generation":        {map[string]string{"tokenizer_config.json": `{"eos_token":"</s>"}`, "generation_config.json": `{"eos_token_id":[2,4]}`}, ids{-1, 4, -1, []int32{2, 4}}},
		"generation of one": {map[string]string{"generation_config.json": `{"eos_token_id":2}`}, ids{-1, -1, -1, []int32{2}}},
	} {
		t.Run(name, func(t *testing.T) {
			tok, err := FromFS(folder(c.files), "m")
			if err != nil {
				t.Fatal(err)
			}
			id := func(id int32, ok bool) int32 {
				if !ok {
					return -1
				}
				return id
			}
			got := ids{id(tok.BOS()), id(tok.EOS()), id(tok.PAD()), tok.EOSIDs()}
			if got.bos != c.want.bos || got.eos != c.want.eos || got.pad != c.want.pad || !slices.Equal(got.all, c.want.all) {
				t.Errorf("got %v, wanted %v", got, c.want)
			}
		})
	}
}

func TestLoadErrors(t *testing.T) {
	for want, files := range map[string]map[string]string{
		`eos_token "<end>" is not in the vocabulary`: {"tokenizer_config.json": `{"eos_token":"<end>"}`},
		"bos_token is 5":                        {"tokenizer_config.json": `{"bos_token":5}`},
		"tokenizer_config.json: unexpected end": {"tokenizer_config.json": `{"bos_token":`},
		"chat_template is neither":              {"tokenizer_config.json": `{"chat_template":{"a":1}}`},
		"eos_token_id":                          {"generation_config.json": `{"eos_token_id":"x"}`},
		`"x" is not an id`:                      {"tokenizer_config.json": `{"added_tokens_decoder":{"x":{"content":"q"}}}`},
		`"<q>" has id 9, wanted 5`:              {"tokenizer_config.json": `{"added_tokens_decoder":{"9":{"content":"<q>"}}}`},
	} {
		if _, err := FromFS(folder(files), "m"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, wanted %q in it", err, want)
		}
	}
	if _, err := Load(filepath.Join("testdata", "nowhere")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, wanted that the file does not exist", err)
	}
	if _, err := FromFile(filepath.Join("testdata", "nowhere")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, wanted that the file does not exist", err)
	}
}

// TestAddedTokensDecoder: tokenizer_config.json can add tokens and change flags.
func TestAddedTokensDecoder(t *testing.T) {
	tok, err := FromFS(folder(map[string]string{"tokenizer_config.json": `{"added_tokens_decoder":{
		"5":{"content":"<q>","special":false},"4":{"content":"</s>","lstrip":true,"special":true}}}`}), "m")
	if err != nil {
		t.Fatal(err)
	}
	if got := tok.Encode("a<q>b  </s>", EncodeOptions{}); !slices.Equal(got, []int32{0, 5, 1, 4}) {
		t.Errorf("ids %v", got)
	}
	if tok.VocabSize() != 6 || tok.IsSpecial(5) || !tok.IsSpecial(4) {
		t.Errorf("size %d, <q> special %v, </s> special %v", tok.VocabSize(), tok.IsSpecial(5), tok.IsSpecial(4))
	}
}

func TestTokens(t *testing.T) {
	tok := loadTiny(t, "bytelevel")
	for id := range int32(tok.VocabSize()) {
		token, ok := tok.Token(id)
		if !ok {
			t.Fatalf("id %d has no token", id)
		}
		if back, ok := tok.ID(token); !ok || back != id {
			t.Errorf("id %d is %q, which has id %d", id, token, back)
		}
	}
	for _, id := range []int32{-1, int32(tok.VocabSize())} {
		if token, ok := tok.Token(id); ok {
			t.Errorf("id %d is %q", id, token)
		}
	}
	if got := tok.Decode([]int32{-5, 1 << 30}, DecodeOptions{}); got != "" {
		t.Errorf("ids that are no tokens decode to %q", got)
	}
}

// TestStreamSettles: what Add returns is final, and comes as soon as it can.
func TestStreamSettles(t *testing.T) {
	tok := loadTiny(t, "bytelevel")
	var out []string
	s := tok.NewStream(DecodeOptions{})
	for _, id := range tok.Encode("é", EncodeOptions{}) {
		out = append(out, s.Add(id))
	}
	if joined := strings.Join(out, ""); joined != "é" || s.Flush() != "" {
		t.Errorf("got %q", out)
	}
	// The first byte alone waits; at the end it is U+FFFD.
	first, _ := tok.ID("Ã")
	if got := s.Add(first); got != "" {
		t.Errorf("half a character gives %q", got)
	}
	if got := s.Flush(); got != "\uFFFD" {
		t.Errorf("Flush = %q", got)
	}
	// SentencePiece: the blank before the first word goes, the others stay.
	sp := loadTiny(t, "spbpe")
	s = sp.NewStream(DecodeOptions{})
	var b strings.Builder
	for _, id := range sp.Encode("the cat", EncodeOptions{AddSpecialTokens: true})[1:] {
		b.WriteString(s.Add(id))
	}
	if b.String() != "the cat" {
		t.Errorf("got %q before Flush", b.String())
	}
}

func TestConcurrentUse(t *testing.T) {
	var in goldenInputs
	readGolden(t, "strings", &in)
	for _, name := range []string{"bytelevel", "spbpe", "wordpiece", "unigram"} {
		tok := loadTiny(t, name)
		var want [][]int32
		for _, s := range in.Strings {
			want = append(want, tok.Encode(string(s), EncodeOptions{}))
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for i, s := range in.Strings {
					if got := tok.Encode(string(s), EncodeOptions{}); !slices.Equal(got, want[i]) {
						t.Errorf("%s: %q differs", name, s)
					}
				}
				if tok.HasChatTemplate() {
					if _, err := tok.ApplyChatTemplate([]Message{{Role: "user", Content: "x"}}, ChatOptions{}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
}

// TestLongRuns: a long text without a blank takes a moment, not hours.
func TestLongRuns(t *testing.T) {
	for _, name := range []string{"bytelevel", "spbpe", "wordpiece", "unigram"} {
		tok := loadTiny(t, name)
		for _, text := range []string{
			strings.Repeat("the", 1<<18/3), strings.Repeat("a", 1<<18), strings.Repeat(" ", 1<<18), strings.Repeat("\n", 1<<18),
			strings.Repeat("e\u0301", 1<<17), strings.Repeat("\u0301", 1<<17), strings.Repeat("語", 1<<17), strings.Repeat("1", 1<<18), strings.Repeat("<", 1<<18), strings.Repeat("\xff", 1<<18),
		} {
			start := time.Now()
			tok.Encode(text, EncodeOptions{})
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("%s: %.10q... takes %v", name, text, d)
			}
		}
	}
}

func TestSaveFiles(t *testing.T) {
	tok, err := FromFS(folder(map[string]string{"tokenizer_config.json": `{"bos_token":"<s>"}`, "chat_template.jinja": "{{ bos_token }}x", "other.txt": "no"}), "m")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := tok.SaveFiles(dir); err != nil {
		t.Fatal(err)
	}
	copied, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if id, ok := copied.BOS(); id != 3 || !ok || !copied.HasChatTemplate() {
		t.Errorf("the copy has BOS %d, %v and chat template %v", id, ok, copied.HasChatTemplate())
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 3 {
		t.Errorf("%d files, wanted 3", len(entries))
	}
	data := []byte(`{` + tinyBPE + `}`)
	tok, err = FromBytes(data)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := tok.SaveFiles(dir); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "tokenizer.json")); !bytes.Equal(got, data) {
		t.Errorf("saved %q", got)
	}
	if err := tok.SaveFiles(filepath.Join(dir, "nowhere")); err == nil {
		t.Error("no error for a folder that is not there")
	}
}

func TestChatErrors(t *testing.T) {
	hi := []Message{{Role: "user", Content: "hi"}}
	plain, err := FromFS(folder(nil), "m")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plain.ApplyChatTemplate(hi, ChatOptions{}); !errors.Is(err, ErrNoChatTemplate) {
		t.Errorf("error %v, wanted ErrNoChatTemplate", err)
	}
	tok, err := FromFS(folder(map[string]string{"tokenizer_config.json": `{"chat_template":[
		{"name":"default","template":"D{{ messages[0].content }}"},{"name":"tool_use","template":"T{{ tools|length }}"},
		{"name":"bad","template":"{% if %}"},{"name":"refuses","template":"{{ raise_exception('no, ' ~ messages[0].role) }}"}]}`}), "m")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o    ChatOptions
		text string
		err  string
	}{
		{ChatOptions{}, "Dhi", ""},
		{ChatOptions{Tools: []any{1}}, "T1", ""},
		{ChatOptions{Template: "default", Tools: []any{1}}, "Dhi", ""},
		{ChatOptions{Template: "bad"}, "", `chat template "bad": template: line 1`},
		{ChatOptions{Template: "refuses"}, "", "no, user"},
		{ChatOptions{Template: "nowhere"}, "", `no template "nowhere"; there are bad, default, refuses, tool_use`},
		{ChatOptions{Tools: []any{func() {}}}, "", "tools[0]"},
	} {
		text, err := tok.ApplyChatTemplate(hi, c.o)
		if text != c.text || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%+v: %q, %v; wanted %q, %q", c.o, text, err, c.text, c.err)
		}
	}
	if _, err := tok.ApplyChatTemplate(nil, ChatOptions{}); err == nil {
		t.Error("no error without messages")
	}
}

// TestMessages: fields, JSON and Extra give the same dictionaries.
func TestMessages(t *testing.T) {
	tok, err := FromFS(folder(map[string]string{"chat_template.jinja": "{{ messages|tojson }}{{ strftime_now('%d %b %Y %H:%M %-d/%-m %%') }}"}), "m")
	if err != nil {
		t.Fatal(err)
	}
	var parsed []Message
	if err := json.Unmarshal([]byte(`[{"role":"user","content":"a","name":null},{"role":"user","content":[{"type":"text","text":"b"}]},
		{"role":"assistant","content":"","tool_calls":[{"type":"function","function":{"name":"f","arguments":{"z":1,"a":2}}}]}]`), &parsed); err != nil {
		t.Fatal(err)
	}
	made := []Message{
		{Role: "user", Content: "a"},
		{Role: "user", Extra: map[string]any{"content": []map[string]string{{"type": "text", "text": "b"}}}},
		{Role: "assistant", ToolCalls: []ToolCall{{Name: "f", Arguments: json.RawMessage(`{"z":1,"a":2}`)}}},
	}
	o := ChatOptions{Now: time.Date(2026, 2, 3, 4, 5, 0, 0, time.UTC)}
	want := `[{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}, ` +
		`{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"z": 1, "a": 2}}}]}]` +
		`03 Feb 2026 04:05 3/2 %`
	for name, messages := range map[string][]Message{"parsed": parsed, "made": made} {
		got, err := tok.ApplyChatTemplate(messages, o)
		if name == "made" {
			got = strings.Replace(got, `{"text": "b", "type": "text"}`, `{"type": "text", "text": "b"}`, 1) // a Go map is sorted
		}
		if err != nil || got != want {
			t.Errorf("%s:\n got %s, %v\nwant %s", name, got, err, want)
		}
	}
	thought := []Message{{Role: "assistant", Content: "c", Reasoning: "r"}}
	got, err := tok.ApplyChatTemplate(thought, o)
	if err != nil || !strings.Contains(got, `"reasoning_content": "r", "thinking": "r"`) {
		t.Errorf("reasoning: %s, %v", got, err)
	}
}
