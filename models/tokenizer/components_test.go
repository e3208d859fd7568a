package tokenizer

import (
	"encoding/json"
	"slices"
	"testing"
)

// TestComponents compares every part of tokenizer.json by itself with Hugging
// Face's library (internal/golden/tokenizer/components.py).
func TestComponents(t *testing.T) {
	var g struct {
		Texts []string
		Cases []struct {
			Name      string
			Tokenizer json.RawMessage
			IDs       [][]int32
			Decode    []struct {
				IDs  []int32
				Text string
			}
			Pairs []struct {
				A, B               string
				Special            bool
				Single, IDs, Types []int32
			}
		}
	}
	readGolden(t, "components", &g)
	for _, c := range g.Cases {
		t.Run(c.Name, func(t *testing.T) {
			tok, err := FromBytes(c.Tokenizer)
			if err != nil {
				t.Fatal(err)
			}
			for i, text := range g.Texts {
				checkIDs(t, tok, text, c.IDs[i], EncodeOptions{})
			}
			for _, d := range c.Decode {
				checkText(t, tok, d.IDs, d.Text, DecodeOptions{})
			}
			for _, p := range c.Pairs {
				o := EncodeOptions{AddSpecialTokens: p.Special}
				checkIDs(t, tok, p.A, p.Single, o)
				got := tok.EncodePair(p.A, p.B, o)
				if !slices.Equal(got.IDs, p.IDs) || !slices.Equal(got.TypeIDs, p.Types) {
					t.Errorf("EncodePair(%q, %q, %+v) = %v, wanted ids %v types %v", p.A, p.B, o, got, p.IDs, p.Types)
				}
			}
		})
	}
}
