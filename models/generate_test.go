package models

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/models/tokenizer"
)

// loadFixture loads a tiny random model of internal/golden.
func loadFixture(t testing.TB, name string) *Model {
	t.Helper()
	m, err := Load(context.Background(), filepath.Join(fixtures, name), Options{On: backendtest.Open(t)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

func newGenerator(t testing.TB, m *Model) *Generator {
	t.Helper()
	g, err := NewGenerator(m)
	require.NoError(t, err)
	return g
}

// idsOf returns what was generated, without the rest.
func idsOf(out []Generation) (ids [][]int32) {
	for _, row := range out {
		ids = append(ids, row.IDs)
	}
	return ids
}

type goldenGeneration struct {
	Model   string
	Options struct {
		RepetitionPenalty float64 `json:"repetition_penalty"`
	}
	Prompts [][]int32
	NewIDs  [][]int32 `json:"new_ids"`
}

// TestGenerateGolden: the ids that transformers generates, each prompt alone and
// all together.
func TestGenerateGolden(t *testing.T) {
	data, err := os.ReadFile("../internal/golden/testdata/generate/generate.json")
	require.NoError(t, err)
	var cases map[string]goldenGeneration
	require.NoError(t, json.Unmarshal(data, &cases))
	require.NotEmpty(t, cases)
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			g := newGenerator(t, loadFixture(t, filepath.Base(c.Model)))
			o := GenerateOptions{MaxNewTokens: len(c.NewIDs[0]), RepetitionPenalty: c.Options.RepetitionPenalty, StopTokens: []int32{}}
			out, err := g.Generate(context.Background(), c.Prompts, o)
			require.NoError(t, err)
			require.Equal(t, c.NewIDs, idsOf(out))
			for i, prompt := range c.Prompts {
				out, err := g.Generate(context.Background(), [][]int32{prompt}, o)
				require.NoError(t, err)
				require.Equal(t, c.NewIDs[i], out[0].IDs, "row %d alone", i)
				require.Equal(t, FinishLength, out[0].FinishReason)
			}
		})
	}
}

// TestGenerateStories: the published greedy text of the real model, to the byte.
func TestGenerateStories(t *testing.T) {
	dir := assets(t, "stories260K")
	m, err := Load(context.Background(), filepath.Join(dir, "hf"), Options{On: backendtest.Open(t)})
	require.NoError(t, err)
	defer m.Close()
	want, err := os.ReadFile(filepath.Join(dir, "expected_greedy_200steps.txt"))
	require.NoError(t, err)
	var streamed string
	text, err := m.Generate(context.Background(), "", GenerateOptions{MaxNewTokens: 200, Stream: func(_ int, piece string) error {
		streamed += piece
		return nil
	}})
	require.NoError(t, err)
	require.Equal(t, string(want), text)
	require.Equal(t, text, streamed)
}

type goldenChat struct {
	Question string
	Prompt   string
	IDs      []int32
	Greedy   []int32 `json:"greedy_40"`
	Text     string  `json:"greedy_text"`
}

// TestGenerateChat: a real chat model's 40 greedy tokens, as transformers gives them.
func TestGenerateChat(t *testing.T) {
	dir := os.Getenv("GOPEFT_SMOLLM2")
	if dir == "" {
		t.Skip("GOPEFT_SMOLLM2 is not set: want the folder of SmolLM2-135M-Instruct with golden.json")
	}
	if !backend.IsXLA(backendtest.Open(t)) {
		t.Skipf("135M parameters are too slow on Go: set %s=xla:/path/to/plugin.so", backendtest.Env)
	}
	data, err := os.ReadFile(filepath.Join(dir, "golden.json"))
	require.NoError(t, err)
	var cases []goldenChat
	require.NoError(t, json.Unmarshal(data, &cases))
	require.NotEmpty(t, cases)
	m, err := Load(context.Background(), dir, Options{On: backendtest.Open(t)})
	require.NoError(t, err)
	defer m.Close()
	var prompts []string
	for _, c := range cases {
		messages := []tokenizer.Message{{Role: "user", Content: c.Question}}
		prompt, err := m.Tokenizer.ApplyChatTemplate(messages, tokenizer.ChatOptions{AddGenerationPrompt: true})
		require.NoError(t, err)
		require.Equal(t, c.Prompt, prompt)
		prompts = append(prompts, prompt)
	}
	o := GenerateOptions{MaxNewTokens: 40, PromptIsComplete: true, KeepSpecialTokens: true}
	out, err := newGenerator(t, m).GenerateText(context.Background(), prompts, o)
	require.NoError(t, err)
	for i, c := range cases {
		require.Equal(t, c.Greedy, out[i].IDs, c.Question)
		require.Equal(t, c.Text, out[i].Text)
		text, err := m.Generate(context.Background(), prompts[i], o)
		require.NoError(t, err)
		require.Equal(t, c.Text, text)
	}
}
