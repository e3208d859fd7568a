package train

import (
	"fmt"
	"math"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/tensors"
)

func argumentShapes(arguments []any) ([]shapes.Shape, error) {
	out := make([]shapes.Shape, len(arguments))
	for i, a := range arguments {
		switch a := a.(type) {
		case *tensors.Tensor:
			out[i] = a.Shape()
		case []float32:
			out[i] = shapes.Make(dtypes.Float32, len(a))
		case []uint32:
			out[i] = shapes.Make(dtypes.Uint32, len(a))
		default:
			return nil, fmt.Errorf("train: argument %d has type %T", i, a)
		}
	}
	return out, nil
}

// random is the input that dropout derives from. The micro-step is always 0: rows have
// offsets within the whole step, so that splitting it changes no mask.
func (s *stepper) random(step, rowOffset int) []uint32 {
	seed := s.config.seed
	return []uint32{uint32(seed) ^ uint32(seed>>32)*0x85ebca6b, uint32(step), 0, uint32(rowOffset)}
}

// batchTensors shifts the labels into targets and makes the batch's tensors.
func batchTensors(b Batch) []*tensors.Tensor {
	if b.arrays.inputs != nil {
		return b.arrays.tensors()
	}
	out := []*tensors.Tensor{tensors.FromFlatDataAndDimensions(b.IDs, b.Rows, b.Length), targetTensor(b)}
	for _, values := range [][]int32{b.Positions, b.Segments} {
		if values != nil {
			out = append(out, tensors.FromFlatDataAndDimensions(values, b.Rows, b.Length))
		}
	}
	if b.Tasks != nil {
		out = append(out, tensors.FromFlatDataAndDimensions(b.Tasks, b.Rows))
	}
	return out
}

// targetTensor is BatchNodes.Targets of a batch.
func targetTensor(b Batch) *tensors.Tensor {
	switch b.Kind {
	case LabelRow:
		return tensors.FromFlatDataAndDimensions(b.Labels, b.Rows)
	case LabelToken:
		return tensors.FromFlatDataAndDimensions(b.Labels, b.Rows, b.Length)
	}
	targets := make([]int32, len(b.Labels))
	for r := range b.Rows {
		row := targets[r*b.Length : (r+1)*b.Length]
		copy(row, b.Labels[r*b.Length+1:(r+1)*b.Length])
		row[b.Length-1] = IgnoreIndex
	}
	return tensors.FromFlatDataAndDimensions(targets, b.Rows, b.Length)
}

func readAndFree(t *tensors.Tensor) ([]float64, error) {
	values, err := tensors.CopyFlatData[float32](t)
	if err != nil {
		return nil, err
	}
	free([]*tensors.Tensor{t})
	out := make([]float64, len(values))
	for i, v := range values {
		out[i] = float64(v)
	}
	return out, nil
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }
