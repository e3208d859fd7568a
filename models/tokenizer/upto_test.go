package tokenizer

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// bracketed gives each word the id of its length, between before and after.
type bracketed struct{ before, after []int32 }

func (b bracketed) Encode(text string, o EncodeOptions) []int32 {
	var ids []int32
	for _, word := range strings.Fields(text) {
		ids = append(ids, int32(len(word)))
	}
	if o.AddSpecialTokens {
		ids = append(append(append([]int32{}, b.before...), ids...), b.after...)
	}
	return ids
}

func TestEncodeUpTo(t *testing.T) {
	bert, gpt := bracketed{[]int32{101}, []int32{102}}, bracketed{}
	for _, c := range []struct {
		tok   bracketed
		text  string
		limit int
		want  []int32
		cut   bool
	}{
		{bert, "a bb ccc", 5, []int32{101, 1, 2, 3, 102}, false},
		{bert, "a bb ccc", 4, []int32{101, 1, 2, 102}, true},
		{bert, "a bb ccc", 2, []int32{101, 102}, true},
		{bert, "a bb ccc", 1, []int32{101}, true},
		{gpt, "a bb ccc", 2, []int32{1, 2}, true},
		{bracketed{nil, []int32{7, 8}}, "a bb ccc", 3, []int32{1, 7, 8}, true},
		{bracketed{[]int32{1}, []int32{1}}, "a a a a", 3, []int32{1, 1, 1}, true},
	} {
		ids, cut := EncodeUpTo(c.tok, c.text, c.limit)
		require.Equal(t, c.want, ids)
		require.Equal(t, c.cut, cut)
	}
}
