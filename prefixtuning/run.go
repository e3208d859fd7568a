package prefixtuning

import (
	"errors"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/graphx"
)

// run builds a small program, runs it once on the host and returns its float32 outcome.
func run(in []*tensors.Tensor, build func(in []*graph.Node) *graph.Node) (values []float32, err error) {
	on, err := backend.Open("go")
	if err != nil {
		return nil, err
	}
	defer on.Finalize()
	err = graphx.Try(func() error {
		exec, err := graph.NewExec(on, build)
		if err != nil {
			return err
		}
		defer exec.Finalize()
		arguments := make([]any, len(in))
		for i, t := range in {
			arguments[i] = t
		}
		out, err := exec.Call(arguments...)
		if err != nil {
			return err
		}
		values, err = tensors.CopyFlatData[float32](out[0])
		return errors.Join(err, out[0].FinalizeAll())
	})
	return values, err
}
