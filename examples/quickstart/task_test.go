package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAnswersAreInTheScene(t *testing.T) {
	r, kinds := rand.New(rand.NewPCG(1, 1)), map[string]int{}
	for range 500 {
		qa := question(r)
		scene, asked, ok := strings.Cut(qa.Question, "\nQ: ")
		require.True(t, ok, qa.Question)
		answer := strings.TrimPrefix(qa.Answer, " ")
		require.NotEqual(t, answer, qa.Answer)
		require.Contains(t, scene, answer)
		require.NotContains(t, asked, answer)
		kinds[strings.Fields(asked)[0]]++
	}
	require.Len(t, kinds, 3) // where, who, what
}

func TestEqualSeedsGiveEqualFiles(t *testing.T) {
	read := func(seed uint64) string {
		path := filepath.Join(t.TempDir(), "task.jsonl")
		require.NoError(t, writeTask(path, 20, seed))
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(data)
	}
	require.Equal(t, read(1), read(1))
	require.NotEqual(t, read(1), read(2))
	require.Equal(t, 20, strings.Count(read(1), "\n"))
}
