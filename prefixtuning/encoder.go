package prefixtuning

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// flatKey is the key in the file of what an encoder makes: a row for each virtual token.
const flatKey = "prompt_embeddings"

// encoder makes the rows of the virtual tokens of an adapter's tensors.
type encoder interface {
	params() []peft.Param
	// encode returns the rows, [virtual tokens, features] float32. p is nil outside of a pass.
	encode(v *peft.Values, p *site.Pass) *graph.Node
}

// table is an encoder that holds the rows as they are.
type table struct {
	rows, features int
	init           func(r *rand.Rand, values []float32) error
}

func (t table) params() []peft.Param {
	return []peft.Param{{Name: flatKey, Key: flatKey, Shape: []int{t.rows, t.features}, Init: t.init}}
}

func (t table) encode(v *peft.Values, _ *site.Pass) *graph.Node { return v.Get(flatKey) }

// network is an encoder of several tensors, of which peft's files have the outcome only. The
// tensors lie beside it, under the names of peft's PyTorch module.
type network struct {
	rows, features int // of what it makes
	tensors        []peft.Param
	build          func(value func(name string) *graph.Node, p *site.Pass) *graph.Node
}

func newNetwork(rows, width, features int) *network {
	n := &network{rows: rows, features: features}
	n.add("embedding.weight", normal, rows, width)
	return n
}

func (n *network) add(name string, init func(r *rand.Rand, values []float32) error, shape ...int) {
	p := peft.Param{Name: "prompt_encoder." + name, Key: name, Shape: shape, Init: init, Beside: true}
	if len(shape) == 1 {
		p.NoDecay, p.Group = true, peft.GroupB
	}
	n.tensors = append(n.tensors, p)
}

// linear adds the tensors of a linear layer as PyTorch starts it: U(-1/√in, 1/√in).
func (n *network) linear(name string, in, out int) {
	init := uniform(1 / math.Sqrt(float64(in)))
	n.add(name+".weight", init, out, in)
	n.add(name+".bias", init, out)
}

func (n *network) params() []peft.Param {
	flat := peft.Param{Name: flatKey, Key: flatKey, Shape: []int{n.rows, n.features}, Computed: true}
	return append([]peft.Param{flat}, n.tensors...)
}

func (n *network) encode(v *peft.Values, p *site.Pass) *graph.Node {
	return n.build(func(name string) *graph.Node { return v.Get("prompt_encoder." + name) }, p)
}

// affine is the linear layer of that name.
func affine(value func(name string) *graph.Node, name string, x *graph.Node) *graph.Node {
	y := graphx.MatMulT(x, value(name+".weight"))
	return graph.Add(y, graph.ExpandLeftToRank(value(name+".bias"), y.Rank()))
}

// fileForm is [peft.FileForm]'s: only a network's file holds something else than its tensors.
func fileForm(e encoder, value func(name string) []float32) (peft.Config, []peft.FileTensor, error) {
	n, ok := e.(*network)
	if !ok {
		return nil, nil, nil
	}
	return n.fileForm(value)
}

func (n *network) fileForm(value func(name string) []float32) (peft.Config, []peft.FileTensor, error) {
	rows, err := n.compute(value)
	if err != nil {
		return nil, nil, fmt.Errorf("computing %s: %w", flatKey, err)
	}
	list := []peft.FileTensor{{Name: flatKey, Key: flatKey, Shape: []int{n.rows, n.features}, Values: rows}}
	for _, p := range n.tensors {
		list = append(list, peft.FileTensor{Name: p.Name, Key: p.Key, Shape: p.Shape, Values: value(p.Name), Beside: true})
	}
	return nil, list, nil
}

// compute runs the network alone, on the Go backend: the products of CUDA's are rounded to TF32,
// and a file must mean the same wherever it is written and read.
func (n *network) compute(value func(name string) []float32) (rows []float32, err error) {
	layout, err := peft.NewLayout(n.tensors)
	if err != nil {
		return nil, err
	}
	values := map[string][]float32{}
	for _, p := range n.tensors {
		values[p.Name] = value(p.Name)
	}
	arguments, err := layout.FromHost(values)
	if err != nil {
		return nil, err
	}
	return run(arguments, func(in []*graph.Node) *graph.Node { return n.encode(layout.Bind(in), nil) })
}

func normal(r *rand.Rand, values []float32) error {
	for i := range values {
		values[i] = float32(r.NormFloat64())
	}
	return nil
}

// spread is the normal distribution of a standard deviation.
func spread(deviation float64) func(r *rand.Rand, values []float32) error {
	return func(r *rand.Rand, values []float32) error {
		for i := range values {
			values[i] = float32(deviation * r.NormFloat64())
		}
		return nil
	}
}

func uniform(bound float64) func(r *rand.Rand, values []float32) error {
	return func(r *rand.Rand, values []float32) error {
		for i := range values {
			values[i] = float32(bound * (2*r.Float64() - 1))
		}
		return nil
	}
}
