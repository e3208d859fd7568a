package quant

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/safetensors"
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

// A scheme knows beforehand what storing will take.
func TestSchemeLayout(t *testing.T) {
	values := make([]float32, 9*37)
	for i := range values {
		values[i] = float32(i%17) - 8
	}
	for _, s := range []Scheme{NF4{}, NF4{DoubleQuant: true}, FP4{BlockSize: 32, DoubleQuant: true}, INT8{}} {
		shape := []int{9, 37}
		stored, err := s.Store(values, shape, safetensors.F32)
		require.NoError(t, err)
		planned := s.Layout(shape, safetensors.F32)
		require.Equal(t, stored.Layout(), planned)
		total, codes := 0, 0
		for _, a := range stored.Arrays() {
			total += len(a.Data)
			if a.Name == "" {
				codes = len(a.Data)
			}
		}
		require.Equal(t, total, planned.Bytes())
		require.Equal(t, total-codes, planned.Statistics())
	}
}
