package pyjson

import (
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The wanted texts are what Python 3.11 prints.
func TestFloat(t *testing.T) {
	for _, c := range []struct {
		v    float64
		want string
	}{
		{0, "0.0"}, {1, "1.0"}, {-3, "-3.0"}, {0.05, "0.05"}, {1e-4, "0.0001"}, {1e-5, "1e-05"}, {2.5e-7, "2.5e-07"},
		{1e15, "1000000000000000.0"}, {1e16, "1e+16"}, {1.5e300, "1.5e+300"}, {0.30000000000000004, "0.30000000000000004"},
		{math.Copysign(0, -1), "-0.0"}, {5e-324, "5e-324"},
	} {
		got, err := Float(c.v).MarshalJSON()
		require.NoError(t, err)
		require.Equal(t, c.want, string(got))
	}
	for _, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		_, err := Float(v).MarshalJSON()
		require.Error(t, err)
	}
}

var sample = map[string]any{
	"z": nil, "list": []string{"b", "a"}, "none": []int{}, "empty": map[string]int{}, "f": Float(0), "i": 8, "yes": true,
	"text": "<a href=\"x\">&\u007f é € 😀\n\t\b\f\r\\\x01 \u2028", "nested": map[string]any{"b": []any{1, map[string]int{"x": 1}}, "a": Float(1e-5)},
	"raw": json.RawMessage(`{"b": 1e5, "a": [ ]}`), "Upper": 1.5,
}

func TestMarshal(t *testing.T) {
	got, err := Marshal(sample)
	require.NoError(t, err)
	require.Equal(t, `{
  "Upper": 1.5,
  "empty": {},
  "f": 0.0,
  "i": 8,
  "list": [
    "b",
    "a"
  ],
  "nested": {
    "a": 1e-05,
    "b": [
      1,
      {
        "x": 1
      }
    ]
  },
  "none": [],
  "raw": {
    "b": 1e5,
    "a": []
  },
  "text": "<a href=\"x\">&\u007f \u00e9 \u20ac \ud83d\ude00\n\t\b\f\r\\\u0001 \u2028",
  "yes": true,
  "z": null
}`, string(got))
	empty, err := Marshal(nil)
	require.NoError(t, err)
	require.Equal(t, "{}", string(empty))
}

// Python itself, where there is one, must print the same.
func TestMarshalEqualsPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3")
	}
	members := map[string]any{}
	for k, v := range sample {
		if k != "raw" { // keeps its order, where Python sorts
			members[k] = v
		}
	}
	got, err := Marshal(members)
	require.NoError(t, err)
	file := t.TempDir() + "/x.json"
	require.NoError(t, os.WriteFile(file, got, 0o600))
	want, err := exec.Command(python, "-c",
		"import json,sys; sys.stdout.write(json.dumps(json.load(open(sys.argv[1])), indent=2, sort_keys=True))", file).Output()
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

func TestParse(t *testing.T) {
	o, err := Parse([]byte(`{"a": 1, "A": 2, "a": 3} `))
	require.NoError(t, err)
	require.Equal(t, "3", string(o["a"]))
	require.Equal(t, "2", string(o["A"]))
	_, err = Parse([]byte(`{"a": "` + strings.Repeat(`[\"`, 999) + `"}`))
	require.NoError(t, err)
	part, err := o.Subset(func(k string) bool { return k == "a" })
	require.NoError(t, err)
	require.JSONEq(t, `{"a": 3}`, string(part))
	for _, bad := range []string{"", "null", "[]", `{"a":}`, `{} {}`, `{"a":1`, "{\"\xff\":1}",
		`{"a":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + "}"} {
		_, err := Parse([]byte(bad))
		require.Error(t, err, "%q", bad)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"a": [1, 2.5e-3, "é", null, {"b": {}}], "c": true}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := Parse(data)
		if err != nil {
			return
		}
		members := map[string]any{}
		for k, v := range o {
			members[k] = v
		}
		text, err := Marshal(members)
		if err != nil {
			t.Fatalf("%q parses but is not written: %v", data, err)
		}
		again, err := Parse(text)
		if err != nil {
			t.Fatalf("written text does not parse: %v\n%s", err, text)
		}
		for k, v := range again {
			members[k] = v
		}
		if second, err := Marshal(members); err != nil || string(second) != string(text) {
			t.Fatalf("not stable: %v\n%s\n%s", err, text, second)
		}
	})
}
