package tokenizer

import (
	"fmt"
	"strings"
	"testing"
)

const tinyBPE = `"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}`

// hostileFiles are broken or contradictory; want is a part of the error.
var hostileFiles = []struct{ name, json, want string }{
	{"empty", ``, "unexpected end"},
	{"truncated", `{"version":"1.0","model":{"type":"BPE","vocab":{"a":0`, "unexpected end"},
	{"not an object", `[]`, "cannot unmarshal"},
	{"no model", `{"version":"1.0"}`, "no model section"},
	{"version", `{"version":"2.0",` + tinyBPE + `}`, `version is "2.0"`},
	{"model type", `{"model":{"type":"CharBPE","vocab":{}}}`, `type "CharBPE" is not supported`},
	{"no model type", `{"model":{"vocab":{}}}`, "no type"},
	{"normalizer type", `{"normalizer":{"type":"Foo"},` + tinyBPE + `}`, "normalizer: Foo: this type is not supported"},
	{"nested type", `{"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"UnicodeScripts"}]},` + tinyBPE + `}`, "pre_tokenizer: Sequence: UnicodeScripts: this type is not supported"},
	{"decoder type", `{"decoder":{"type":"CTC"},` + tinyBPE + `}`, "decoder: CTC"},
	{"post-processor type", `{"post_processor":{"type":"Foo"},` + tinyBPE + `}`, "post_processor: Foo"},
	{"deep nesting", `{"normalizer":` + strings.Repeat(`{"type":"Sequence","normalizers":[`, 40) + `{"type":"NFC"}` + strings.Repeat(`]}`, 40) + `,` + tinyBPE + `}`, "nested more than"},
	{"dropout", `{"model":{"type":"BPE","dropout":0.1,"vocab":{},"merges":[]}}`, "dropout is 0.1"},
	{"negative id", `{"model":{"type":"BPE","vocab":{"a":-1},"merges":[]}}`, `token "a" has id -1`},
	{"huge id", `{"model":{"type":"BPE","vocab":{"a":4294967296},"merges":[]}}`, "has id 4294967296"},
	{"shared id", `{"model":{"type":"BPE","vocab":{"a":0,"b":0},"merges":[]}}`, `tokens "a" and "b" share id 0`},
	{"merge of strangers", `{"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}`, `merge 0: "b" is not in the vocabulary`},
	{"merge to a stranger", `{"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]}}`, `its result "ab" is not in the vocabulary`},
	{"merge of three", `{"model":{"type":"BPE","vocab":{"a":0},"merges":["a a a"]}}`, "merge 0 is"},
	{"merge list of one", `{"model":{"type":"BPE","vocab":{"a":0},"merges":[["a"]]}}`, "merge 0 has 1 parts"},
	{"short with prefix", `{"model":{"type":"BPE","continuing_subword_prefix":"##","vocab":{"a":0},"merges":[["a","a"]]}}`, "shorter than continuing_subword_prefix"},
	{"unknown unk", `{"model":{"type":"BPE","unk_token":"<unk>","vocab":{"a":0},"merges":[]}}`, `unk_token "<unk>" is not in the vocabulary`},
	{"WordPiece unk", `{"model":{"type":"WordPiece","unk_token":"[UNK]","vocab":{"a":0}}}`, `unk_token "[UNK]"`},
	{"Unigram without unk", `{"model":{"type":"Unigram","unk_id":null,"vocab":[["a",0]]}}`, "unk_id is missing"},
	{"Unigram unk outside", `{"model":{"type":"Unigram","unk_id":7,"vocab":[["a",0]]}}`, "unk_id is 7"},
	{"Unigram entry", `{"model":{"type":"Unigram","unk_id":0,"vocab":[["a"]]}}`, "has 1 parts"},
	{"added id", `{"added_tokens":[{"id":7,"content":"<x>"}],` + tinyBPE + `}`, `"<x>" has id 7, wanted 3`},
	{"added id of another", `{"added_tokens":[{"id":1,"content":"a"}],` + tinyBPE + `}`, `"a" has id 1, wanted 0`},
	{"sparse vocabulary", `{"added_tokens":[{"id":1,"content":"<x>"}],"model":{"type":"BPE","vocab":{"a":1},"merges":[]}}`, `1 is "a" there`},
	{"behavior", `{"pre_tokenizer":{"type":"Split","pattern":{"String":"x"},"behavior":"Drop"},` + tinyBPE + `}`, `behavior is "Drop"`},
	{"regular expression", `{"pre_tokenizer":{"type":"Split","pattern":{"Regex":"("},"behavior":"Isolated"},` + tinyBPE + `}`, "regular expression"},
	{"pattern", `{"normalizer":{"type":"Replace","pattern":{},"content":""},` + tinyBPE + `}`, "neither String nor Regex"},
	{"metaspace", `{"pre_tokenizer":{"type":"Metaspace","replacement":"","prepend_scheme":"always"},` + tinyBPE + `}`, "wanted one character"},
	{"scheme", `{"pre_tokenizer":{"type":"Metaspace","replacement":"_","prepend_scheme":"last"},` + tinyBPE + `}`, `prepend_scheme is "last"`},
	{"charsmap", `{"normalizer":{"type":"Precompiled","precompiled_charsmap":"AAEAAA=="},` + tinyBPE + `}`, "says its table has 256 bytes, but 0 follow"},
	{"template token", `{"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}}],"pair":[],"special_tokens":{}},` + tinyBPE + `}`, `"<s>" is not in special_tokens`},
	{"template sequence", `{"post_processor":{"type":"TemplateProcessing","single":[{"Sequence":{"id":"B","type_id":0}}],"pair":[],"special_tokens":{}},` + tinyBPE + `}`, `sequence "B"`},
	{"two processors", `{"post_processor":{"type":"Sequence","processors":[{"type":"BertProcessing","sep":["a",0],"cls":["b",1]},{"type":"BertProcessing","sep":["a",0],"cls":["b",1]}]},` + tinyBPE + `}`, "more than one"},
	{"wrong field type", `{"normalizer":{"type":"Prepend","prepend":5},` + tinyBPE + `}`, "cannot unmarshal number"},
}

func TestHostileFiles(t *testing.T) {
	for _, c := range hostileFiles {
		t.Run(c.name, func(t *testing.T) {
			_, err := FromBytes([]byte(c.json))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, wanted %q in it", err, c.want)
			}
		})
	}
}

// TestSparseIDs: a tiny file with a large id must not ask for gigabytes.
func TestSparseIDs(t *testing.T) {
	tok, err := FromBytes([]byte(`{"model":{"type":"BPE","vocab":{"a":0,"b":2000000000},"merges":[]}}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := tok.Encode("ba", EncodeOptions{}); fmt.Sprint(got) != "[2000000000 0]" {
		t.Errorf("ids %v", got)
	}
	if got := tok.VocabSize(); got != 2000000001 {
		t.Errorf("VocabSize %d", got)
	}
	if token, ok := tok.Token(2000000000); !ok || token != "b" {
		t.Errorf("Token = %q, %v", token, ok)
	}
}

// TestTruncatedFiles cuts a good file at every length.
func TestTruncatedFiles(t *testing.T) {
	whole := `{"version":"1.0","added_tokens":[{"id":3,"content":"<x>"}],"normalizer":{"type":"NFC"},` + tinyBPE + `}`
	for n := range len(whole) {
		if _, err := FromBytes([]byte(whole[:n])); err == nil {
			t.Errorf("no error for the first %d bytes", n)
		}
	}
	if _, err := FromBytes([]byte(whole)); err != nil {
		t.Error(err)
	}
}
