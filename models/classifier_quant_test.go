package models

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/quant"
)

// transformers quantises a classifier's head, too, unless it is told not to: such a
// checkpoint computes with the head decoded, and comes out as it was read, or gets a new head.
func TestClassifierWithQuantisedHead(t *testing.T) {
	const head = "classifier.weight"
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(encoderFixtures, "bert_nf4"))))
	editTensors(t, dir, func(list []safetensors.Tensor) []safetensors.Tensor {
		out := without(list, head)
		for _, tensor := range list {
			if tensor.Name == head {
				values := make([]float32, 3*64)
				require.NoError(t, safetensors.DecodeFloat32s(values, tensor.Bytes, tensor.DType))
				stored, err := quant.NF4{DoubleQuant: true}.Store(values, tensor.Shape, tensor.DType)
				require.NoError(t, err)
				parts, err := stored.Tensors(head)
				require.NoError(t, err)
				out = append(out, parts...)
			}
		}
		return out
	})
	scores := func(c *Classifier) []float32 {
		c.Tokenizer = wordPiece(t)
		p, err := c.Predict(t.Context(), []string{"w10 w11 w12", "w30"})
		require.NoError(t, err)
		return append(p[0].Probabilities, p[1].Probabilities...)
	}
	load := func(dir string) *Classifier {
		c, err := LoadClassifier(t.Context(), dir, ClassifierOptions{Options: float32Options(t)})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, c.Close()) })
		return c
	}
	c := load(dir)
	require.Contains(t, c.quantised, head)
	decoded := t.TempDir()
	require.NoError(t, c.Export(t.Context(), decoded, nil))
	require.InDeltaSlice(t, scores(load(decoded)), scores(c), 1e-6)
	require.NotEqual(t, scores(load(filepath.Join(encoderFixtures, "bert_nf4"))), scores(c))
	same := t.TempDir()
	_, err := c.ExportQuantised(t.Context(), same, nil)
	require.NoError(t, err)
	require.Equal(t, scores(c), scores(load(same)))

	fresh, err := LoadClassifier(t.Context(), dir, ClassifierOptions{Options: float32Options(t), NumLabels: 5, NewHead: true})
	require.NoError(t, err)
	defer fresh.Close()
	require.NotContains(t, fresh.quantised, head)
	require.Equal(t, 5, fresh.NumLabels())
}
