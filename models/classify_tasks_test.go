package models

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/prefixtuning"
)

// Each text is classified with its own task, whatever order texts are computed in.
func TestPredictTasks(t *testing.T) {
	c, err := LoadClassifier(t.Context(), filepath.Join(encoderFixtures, "bert_sequence"), ClassifierOptions{Options: float32Options(t)})
	require.NoError(t, err)
	defer c.Close()
	c.Tokenizer = wordPiece(t)
	pm, err := peft.GetPeftModel(c, prefixtuning.MultitaskPromptTuningConfig{NumVirtualTokens: 3, NumTasks: 3}, peft.Options{Seed: 4})
	require.NoError(t, err)
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	values, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	for _, name := range []string{"prefix_task_cols", "prefix_task_rows"} { // tasks are alike at the start
		for i := range values[name] {
			values[name][i] *= 50
		}
	}
	arguments, err := layout.FromHost(values)
	require.NoError(t, err)
	require.NoError(t, pm.SetValues(peft.DefaultAdapter, arguments))

	texts, tasks := []string{"w10 w11 w12 w13", "w30", "w31 w32", "w30"}, []int32{1, 2, 0, 1}
	together, err := Predict(t.Context(), pm, texts, PredictOptions{BatchSize: 3, Tasks: tasks})
	require.NoError(t, err)
	for i := range texts {
		alone, err := Predict(t.Context(), pm, texts[i:i+1], PredictOptions{Tasks: tasks[i : i+1]})
		require.NoError(t, err)
		require.InDeltaSlice(t, alone[0].Probabilities, together[i].Probabilities, 1e-5)
	}
	require.Greater(t, max(together[1].Probability-together[3].Probability, together[3].Probability-together[1].Probability), float32(1e-3))

	for want, wrong := range map[string][]int32{
		"the adapter has 3 tasks, but the batch has no task ids": nil,
		"3 tasks of 4 texts":                             {0, 1, 2},
		"text 2: task 3, but the adapters know 3 tasks":  {0, 1, 3, 0},
		"text 0: task -1, but the adapters know 3 tasks": {-1, 1, 2, 0},
	} {
		_, err := Predict(t.Context(), pm, texts, PredictOptions{Tasks: wrong})
		require.ErrorContains(t, err, want)
	}
}
