package parity

import (
	"testing"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/site"
)

// forward returns the logits [rows, length, vocabulary] that a view gives for ids.
func forward(t testing.TB, view site.View, ids [][]int32) *tensors.Tensor {
	t.Helper()
	lm := view.LanguageModel()
	arguments, err := view.Arguments()
	require.NoError(t, err)
	program, err := model.NewExec(lm.Backend(), lm.Store(), func(_ *model.Scope, in []*graph.Node) *graph.Node {
		pass := &site.Pass{Graph: in[0].Graph(), DType: lm.DType(), Hook: view.Hook(in[1:])}
		return lm.Logits(pass, lm.Hidden(pass, site.Tokens{IDs: in[0]}))
	})
	require.NoError(t, err)
	defer program.Finalize()
	in := []any{ids}
	for _, a := range arguments {
		in = append(in, a)
	}
	out, err := program.Exec(in...)
	require.NoError(t, err)
	return out[0]
}

// writeAnswer writes ids and their logits for the check programs of internal/golden.
func writeAnswer(t testing.TB, path string, ids [][]int32, logits *tensors.Tensor) {
	t.Helper()
	rows := tensors.FromValue(ids)
	var list []safetensors.Tensor
	for _, x := range []struct {
		name   string
		dtype  safetensors.DType
		tensor *tensors.Tensor
	}{{"input_ids", safetensors.I32, rows}, {"logits", safetensors.F32, logits}} {
		var data []byte
		require.NoError(t, x.tensor.ConstBytes(func(b []byte) { data = append(data, b...) }))
		list = append(list, safetensors.Tensor{Name: x.name, DType: x.dtype, Shape: x.tensor.Shape().Dimensions, Bytes: data})
	}
	require.NoError(t, safetensors.Write(path, nil, list))
}

// rowsOf cuts a batch [rows, length] of I32 out of a file's tensor [..., rows, length],
// the last two axes of which are a batch: all of them, one after the other.
func rowsOf(t testing.TB, file *safetensors.File, name string) [][]int32 {
	t.Helper()
	info, ok := file.Info(name)
	require.True(t, ok, name)
	require.Equal(t, safetensors.I32, info.DType, name)
	data, err := file.Bytes(name)
	require.NoError(t, err)
	length := info.Shape[len(info.Shape)-1]
	var rows [][]int32
	for len(data) > 0 {
		row := make([]int32, length)
		for i := range row {
			row[i] = int32(uint32(data[4*i]) | uint32(data[4*i+1])<<8 | uint32(data[4*i+2])<<16 | uint32(data[4*i+3])<<24)
		}
		rows, data = append(rows, row), data[4*length:]
	}
	return rows
}
