package peft

import (
	"errors"
	"fmt"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/site"
)

// Run computes the model's outputs, for inference, with the active adapters of a view of
// it; nil: the model alone. The program is compiled at the first call with inputs of new
// shapes; views that differ only in values share programs.
func (w *WrappedModel) Run(pm *PeftModel, inputs ...*tensors.Tensor) ([]*tensors.Tensor, error) {
	out, err := w.run(pm, inputs)
	if err != nil {
		return nil, fmt.Errorf("peft: run: %w", err)
	}
	return out, nil
}

func (w *WrappedModel) run(pm *PeftModel, inputs []*tensors.Tensor) (out []*tensors.Tensor, err error) {
	if len(inputs) != len(w.inputs) {
		return nil, fmt.Errorf("%d inputs, but the model has %d", len(inputs), len(w.inputs))
	}
	var values []*tensors.Tensor
	if pm != nil {
		if pm.Base() != site.Base(w) {
			return nil, errors.New("the view is one of another base")
		}
		if values, err = pm.Arguments(); err != nil {
			return nil, err
		}
	}
	exec, err := w.program(pm, len(values))
	if err != nil {
		return nil, err
	}
	arguments := make([]any, 0, len(values)+len(inputs))
	for _, t := range append(values, inputs...) {
		arguments = append(arguments, t)
	}
	err = graphx.Try(func() error {
		out, err = exec.Exec(arguments...)
		return err
	})
	return out, err
}

// program returns the program of a view with so many arguments.
func (w *WrappedModel) program(pm *PeftModel, arguments int) (*model.Exec, error) {
	key := ""
	if pm != nil {
		key = fmt.Sprint(len(pm.Active())) + pm.Structure()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if exec, ok := w.programs[key]; ok {
		return exec, nil
	}
	exec, err := model.NewExec(w.backend, w.store, func(_ *model.Scope, in []*graph.Node) []*graph.Node {
		var outputs []*graph.Node
		// A panic with anything but an error would leave concurrent callers waiting for the graph.
		err := graphx.Try(func() error {
			p := &site.Pass{Graph: in[0].Graph(), DType: w.dtype}
			if pm != nil {
				p.Hook = pm.Hook(in[:arguments])
			}
			outputs = w.Call(p, in[arguments:])
			return nil
		})
		if err != nil {
			panic(err)
		}
		return outputs
	})
	if err != nil {
		return nil, err
	}
	exec = exec.WithName("gopeft:wrapped").SetMaxCache(-1)
	w.programs[key] = exec
	return exec, nil
}

// Close frees the compiled programs of [WrappedModel.Run]. The store stays.
func (w *WrappedModel) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, exec := range w.programs {
		exec.Finalize()
	}
	clear(w.programs)
}
