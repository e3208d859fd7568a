package peft

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Python's answers; TestRegexpsEqualPython asks Python itself where there is one.
var regexpCases = []struct {
	pattern, text string
	full, head    bool // re.fullmatch, and re.match of rf"(.*\.)?({pattern})$"
}{
	{`.*\.q_proj`, "model.layers.0.q_proj", true, true},
	{`q_proj`, "model.layers.0.q_proj", false, true},
	{`^q_proj`, "model.layers.0.q_proj", false, false},
	{`^model.*`, "model.layers.0.q_proj", true, true},
	{`a|ab`, "ab", true, true},
	{`.*(?!o_proj)[qv]_proj`, "x.v_proj", true, true},
	{`.*(?<!down)_proj`, "x.down_proj", false, false},
	{`(?i).*Q_PROJ`, "x.q_proj", true, true},
	{`(?P<a>x).(?P=a)`, "x.x", true, true},
	{`(?P<a>x).(?P=a)`, "x.y", false, false},
	{`x{,2}`, "xx", true, true},
	{`x{,2}`, "xxx", false, false},
	{`[]x]+`, "x]", true, true},
	{`[^]x]+`, "ab", true, true},
	{`[^]x]+`, "a]", false, false},
	{`[[x]+`, "[x", true, true},
	{`[a-z[]+`, "a[b", true, true},
	{`[{,2}]+`, "2,{}", true, true},
	{`\Aab\Z`, "ab", true, true},
	{`\[x\]`, "[x]", true, true},
	{`layers\.(?:[0-9]|1[0-5])\..*`, "layers.15.fc", true, true},
	{`layers\.(?:[0-9]|1[0-5])\..*`, "layers.16.fc", false, false},
	{`\d+`, "12", true, true},
	{`é+`, "éé", true, true},
	{``, "", true, true},
}

func TestRegexps(t *testing.T) {
	for _, c := range regexpCases {
		full, err := compilePython(`\A(?:%s)\z`, c.pattern)
		require.NoError(t, err, c.pattern)
		got, _, err := full.match(c.text)
		require.NoError(t, err)
		require.Equal(t, c.full, got, "fullmatch(%q, %q)", c.pattern, c.text)
		index, err := Patterns{{Pattern: c.pattern, Value: 1}}.Match([]string{c.text})
		if strings.HasPrefix(c.pattern, "(?i)") {
			continue // Python refuses flags in the middle
		}
		require.NoError(t, err)
		require.Equal(t, c.head, index[0] == 0, "get_pattern_key(%q, %q)", c.pattern, c.text)
	}
	for _, bad := range []string{"(", ")", "a)(b", "[", `\`, "(?P<a", "*", "(?P=b)"} {
		_, err := compilePython(`\A(?:%s)\z`, bad)
		require.ErrorContains(t, err, "regular expression", bad)
	}
}

func TestRegexpsEqualPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3")
	}
	var cases [][]any
	for _, c := range regexpCases {
		cases = append(cases, []any{c.pattern, c.text, c.full, c.head})
	}
	data, err := json.Marshal(cases)
	require.NoError(t, err)
	command := exec.Command(python, "-c", `
import json, re, sys
for p, text, full, head in json.load(sys.stdin):
    assert bool(re.fullmatch(p, text)) == full, (p, text)
    assert p.startswith("(?i)") or bool(re.match(rf"(.*\.)?({p})$", text)) == head, (p, text)
`)
	command.Stdin = strings.NewReader(string(data))
	out, err := command.CombinedOutput()
	require.NoError(t, err, string(out))
}

func FuzzRegexp(f *testing.F) {
	for _, c := range regexpCases {
		f.Add(c.pattern, c.text)
	}
	f.Fuzz(func(t *testing.T, pattern, text string) {
		re, err := compilePython(`\A(?:%s)\z`, pattern)
		if err != nil {
			return
		}
		re.left = patternBudget / 100
		re.match(text) // neither panics nor hangs
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"target_modules": ["q", "v"], "layers_to_transform": 1, "layers_pattern": ["h"], "rank_pattern": {"a": 1, "b": 2.5}, "task_type": null}`))
	f.Add([]byte(`{"target_modules": "all-linear", "rank_pattern": null, "x": {"y": [1e5]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var c Full
		common, err := DecodeFields(data, &c)
		if err != nil {
			return
		}
		c.PeftConfig = common
		text, err := EncodeConfig(c)
		if err != nil {
			t.Fatalf("%s reads but is not written: %v", data, err)
		}
		var again Full
		common, err = DecodeFields(text, &again)
		if err != nil {
			t.Fatalf("written configuration does not read: %v\n%s", err, text)
		}
		again.PeftConfig = common
		if second, err := EncodeConfig(again); err != nil || string(second) != string(text) {
			t.Fatalf("not stable: %v\n%s\n%s", err, text, second)
		}
	})
}

func FuzzPatterns(f *testing.F) {
	f.Add([]byte(`{"a": 1, "b": 2.5, "a": 3}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var p Patterns
		if json.Unmarshal(data, &p) != nil {
			return
		}
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var again Patterns
		if err := json.Unmarshal(text, &again); err != nil || len(again) != len(p) {
			t.Fatalf("%s %v", text, err)
		}
		for i := range p {
			if again[i] != p[i] {
				t.Fatalf("%v is not %v", again[i], p[i])
			}
		}
	})
}
