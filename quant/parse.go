package quant

import (
	"fmt"

	"github.com/gopeft/gopeft/internal/suggest"
)

// Parse returns the scheme that a command line names, "nf4", "fp4" or "int8", or nil for "".
// doubleQuant is that of [NF4] and [FP4].
func Parse(name string, doubleQuant bool) (Scheme, error) {
	switch name {
	case string(NormalFloat):
		return NF4{DoubleQuant: doubleQuant}, nil
	case string(Float4):
		return FP4{DoubleQuant: doubleQuant}, nil
	case "int8", "":
		if doubleQuant {
			return nil, fmt.Errorf("quant: double quantisation: want the format nf4 or fp4, got %q", name)
		}
		if name == "" {
			return nil, nil
		}
		return INT8{}, nil
	}
	return nil, fmt.Errorf("quant: format %q: want nf4, fp4 or int8%s", name, suggest.DidYouMean(name, []string{"nf4", "fp4", "int8"}))
}
