package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/examples/pretrain/world"
)

func TestEveryFactIsAskedOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, q := range questions(1) {
		require.False(t, seen[q.Question], q.Question)
		seen[q.Question] = true
		require.True(t, strings.HasPrefix(q.Answer, " ") && len(q.Answer) > 2, q.Answer)
		require.NotContains(t, q.Question, "NAME")
		require.NotContains(t, q.Question, q.Answer)
	}
	require.Len(t, seen, 6*len(world.People()))
}

func TestEqualSeedsGiveEqualFiles(t *testing.T) {
	read := func(seed uint64) string {
		path := filepath.Join(t.TempDir(), "task.jsonl")
		require.NoError(t, writeTask(path, seed))
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(data)
	}
	require.Equal(t, read(1), read(1))
	require.NotEqual(t, read(1), read(2))
}
