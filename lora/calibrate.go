package lora

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/site"
)

// Batch is data to calibrate an initialisation with, see [CalibrateEVA] and [CalibrateCorDA].
type Batch struct {
	// IDs are rows of token ids, all of one length.
	IDs [][]int32
	// Use marks the tokens whose activations count: those that are no padding, and for EVA
	// best only those that are learned. nil: all.
	Use [][]bool
}

// check reports a batch that is not rectangular.
func (b Batch) check() error {
	if len(b.IDs) == 0 || len(b.IDs[0]) == 0 {
		return errors.New("the batch is empty")
	}
	if b.Use != nil && len(b.Use) != len(b.IDs) {
		return fmt.Errorf("IDs has %d rows, Use %d", len(b.IDs), len(b.Use))
	}
	for i, row := range b.IDs {
		if len(row) != len(b.IDs[0]) || b.Use != nil && len(b.Use[i]) != len(row) {
			return fmt.Errorf("row %d: want %d tokens as in the first, got %d", i, len(b.IDs[0]), len(row))
		}
	}
	return nil
}

func checkData(data []Batch) error {
	if len(data) == 0 {
		return errors.New("there is no data")
	}
	for i, b := range data {
		if err := b.check(); err != nil {
			return fmt.Errorf("batch %d: %w", i, err)
		}
	}
	return nil
}

// mask is Use as numbers.
func (b Batch) mask() [][]float32 {
	mask := make([][]float32, len(b.IDs))
	for i, row := range b.IDs {
		mask[i] = make([]float32, len(row))
		for j := range row {
			if b.Use == nil || b.Use[i][j] {
				mask[i][j] = 1
			}
		}
	}
	return mask
}

// calibration holds initial values by module path.
type calibration struct {
	// components are the rows of A with EVA.
	components map[string][]float32
	// starts are those of CorDA.
	starts map[string]start
}

// linears are the linear targets of a configuration with their ranks and scales.
func (c LoraConfig) linears(base site.Base, data []Batch) (*adapter, []layer, error) {
	if base == nil {
		return nil, nil, errors.New("base model is nil")
	}
	if len(c.LayerReplication) > 0 || len(c.TargetParameters) > 0 {
		return nil, nil, errors.New("layer_replication and target_parameters do not work with an initialisation from data")
	}
	if err := checkData(data); err != nil {
		return nil, nil, err
	}
	c.InitLoraWeights = InitDefault
	if err := c.validate(); err != nil {
		return nil, nil, err
	}
	a, err := attach(c, base)
	if err != nil {
		return nil, nil, err
	}
	var layers []layer
	for _, m := range a.targets {
		if m.Kind == site.Linear {
			layers = append(layers, a.layers[m.Path])
		}
	}
	if len(layers) == 0 {
		return nil, nil, errors.New("no target is a linear layer")
	}
	return a, layers, nil
}

// collector is a hook that notes the inputs of modules and changes nothing.
type collector struct {
	inputs map[string][]*graph.Node
	wanted map[string]bool
}

// Apply implements [site.Hook].
func (c *collector) Apply(_ *site.Pass, s *site.Site) *graph.Node {
	if c.wanted[s.Path] {
		c.inputs[s.Path] = append(c.inputs[s.Path], s.X)
	}
	return s.Base(s.X)
}

// Parameter implements [site.Hook].
func (c *collector) Parameter(_ *site.Pass, _ string, base func() *graph.Node) *graph.Node {
	return base()
}

// Sublayer implements [site.Hook].
func (c *collector) Sublayer(_ *site.Pass, s *site.Sublayer) *graph.Node { return s.Join(s.Output) }

// Prefix implements [site.Hook].
func (c *collector) Prefix(*site.Pass, site.Tokens) site.Prefix { return site.Prefix{} }

// Adapts implements [site.Hook].
func (c *collector) Adapts(path string) bool { return c.wanted[path] }

// observer runs a base and computes something of each module's inputs. Modules with
// the same input share it.
type observer struct {
	exec *model.Exec
	// results[path] says which result is the module's.
	results map[string]int
}

// observe makes a program. compute gets inputs [rows, length, in] in float32 and the mask
// [rows, length].
func observe(base site.Base, layers []layer, compute func(x, mask *graph.Node) *graph.Node) (*observer, error) {
	o := &observer{results: map[string]int{}}
	wanted := map[string]bool{}
	for _, l := range layers {
		wanted[l.Path] = true
	}
	build := func(ids, mask *graph.Node) []*graph.Node {
		c := &collector{inputs: map[string][]*graph.Node{}, wanted: wanted}
		forward(base, &site.Pass{Graph: ids.Graph(), DType: base.DType(), Hook: c}, site.Tokens{IDs: ids})
		var out []*graph.Node
		of := map[*graph.Node]int{}
		for _, l := range layers {
			inputs := c.inputs[l.Path]
			if len(inputs) != 1 || inputs[0].Rank() != 3 {
				panic(fmt.Errorf("module %q is used %d times, want once on [rows, length, features]", l.Path, len(inputs)))
			}
			x := inputs[0]
			if _, ok := of[x]; !ok {
				of[x] = len(out)
				out = append(out, compute(graph.ConvertDType(x, dtypes.Float32), mask))
			}
			o.results[l.Path] = of[x]
		}
		return out
	}
	var err error
	o.exec, err = model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
		var out []*graph.Node
		if err := graphx.Try(func() error { out = build(in[0], in[1]); return nil }); err != nil {
			panic(err)
		}
		return out
	})
	return o, err
}

// forward builds the whole model, its head too.
func forward(base site.Base, p *site.Pass, in site.Tokens) {
	switch m := base.(type) {
	case site.LanguageModel:
		m.Logits(p, m.Hidden(p, in))
	case site.Classifier:
		m.Classify(p, in)
	default:
		panic(fmt.Errorf("the base (%T) is no model of token ids", base))
	}
}

// run returns the results for a batch as float32, by index.
func (o *observer) run(b Batch) (out [][]float32, err error) {
	err = graphx.Try(func() error {
		results, err := o.exec.Exec(b.IDs, b.mask())
		if err != nil {
			return err
		}
		for _, t := range results {
			values, err := tensors.CopyFlatData[float32](t)
			if err != nil {
				return err
			}
			out = append(out, values)
			t.MustFinalizeAll()
		}
		return nil
	})
	return out, err
}

func (o *observer) close() { o.exec.Finalize() }

// chunks divides layers so that the sizes of each chunk's results stay below a limit.
func chunks(layers []layer, size func(l layer) int, limit int) [][]layer {
	var out [][]layer
	room := 0
	for _, l := range layers {
		if n := size(l); len(out) == 0 || n > room {
			out, room = append(out, nil), limit
		}
		room -= size(l)
		out[len(out)-1] = append(out[len(out)-1], l)
	}
	return slices.Clip(out)
}
