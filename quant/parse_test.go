package quant

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name   string
		double bool
		want   Scheme
		err    string
	}{
		{"", false, nil, ""},
		{"nf4", true, NF4{DoubleQuant: true}, ""},
		{"fp4", false, FP4{}, ""},
		{"int8", false, INT8{}, ""},
		{"int8", true, nil, `want the format nf4 or fp4, got "int8"`},
		{"", true, nil, `want the format nf4 or fp4, got ""`},
		{"nf", false, nil, `format "nf": want nf4, fp4 or int8; did you mean "nf4"?`},
	} {
		got, err := Parse(c.name, c.double)
		if c.err != "" {
			require.ErrorContains(t, err, c.err)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, c.want, got)
	}
}
