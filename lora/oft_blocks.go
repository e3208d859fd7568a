package lora

import (
	"fmt"
	"math"
	"strconv"

	"github.com/gomlx/gomlx/core/graph"
	"gonum.org/v1/gonum/mat"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// oftLayer is OFT on one module: n blocks of size b.
type oftLayer struct {
	site.Module
	n, b int
}

const oftWeight = "oft_R.weight" // [n, b·(b-1)/2], [1, ...] with block_share

func (c OftConfig) layer(m site.Module) (oftLayer, error) {
	if err := wantLinear(m); err != nil {
		return oftLayer{}, err
	}
	l := oftLayer{Module: m}
	option, size := "oft_block_size", c.OftBlockSize
	if c.R != 0 {
		option, size = "r", c.R
	}
	fit := nearestDivisor(m.In, size)
	if fit != size && !c.Reading() {
		return l, fmt.Errorf("%s is %d, which does not divide the %d inputs of %q; the nearest that does is %d", option, size, m.In, m.Path, fit)
	}
	l.n, l.b = m.In/fit, fit
	if c.R != 0 {
		l.n, l.b = fit, m.In/fit
	}
	if l.b < 2 {
		return l, fmt.Errorf("%s is %d: blocks of one input of %q cannot turn", option, size, m.Path)
	}
	return l, nil
}

// nearestDivisor is adjust_oft_parameters of peft/tuners/oft/layer.py.
func nearestDivisor(in, size int) int {
	if size >= in {
		return in
	}
	higher, lower := size, size
	for in%higher != 0 {
		higher++
	}
	for in%lower != 0 {
		lower--
	}
	if size-lower <= higher-size {
		return lower
	}
	return higher
}

// oft is an OFT planned on a base.
type oft struct {
	config           OftConfig
	targets          []site.Module
	byPath, byWeight map[string]oftLayer
	patterns         []peft.PatternCount
}

var (
	_ peft.InputAdapter = (*oft)(nil)
	_ peft.Merger       = (*oft)(nil)
	_ peft.Describer    = (*oft)(nil)
	_ peft.Configured   = (*oft)(nil)
	_ peft.StepAdapter  = coft{}
)

// blocks is the number of blocks with values of their own.
func (a *oft) blocks(l oftLayer) int {
	if a.config.BlockShare {
		return 1
	}
	return l.n
}

// Params implements [peft.Adapter].
func (a *oft) Params() []peft.Param {
	var params []peft.Param
	for _, m := range a.targets {
		l := a.byPath[m.Path]
		p := peft.Param{Name: m.Path + "." + oftWeight, Shape: []int{a.blocks(l), l.b * (l.b - 1) / 2}}
		if a.config.InitWeights == Off {
			p.Init = normal(0.1)
		}
		params = append(params, p)
	}
	return params
}

// Targets implements [peft.Adapter].
func (a *oft) Targets() []site.Module { return a.targets }

// Config implements [peft.Configured].
func (a *oft) Config() peft.Config { return a.config }

// Patterns implements [peft.Describer].
func (a *oft) Patterns() []peft.PatternCount { return a.patterns }

// Describe implements [peft.Describer].
func (a *oft) Describe(m site.Module) []peft.Setting {
	l := a.byPath[m.Path]
	return []peft.Setting{{Name: "blocks", Value: strconv.Itoa(l.n)}, {Name: "size", Value: strconv.Itoa(l.b)}}
}

// Input implements [peft.InputAdapter].
func (a *oft) Input(u *peft.Use, x *graph.Node) *graph.Node {
	l := a.byPath[u.Site.Path]
	values := u.Value(oftWeight)
	if a.config.Coft {
		// The gradient is that of the projected values, as if they had been so.
		values = graph.Add(values, graph.StopGradient(graph.Sub(a.project(values), values)))
	}
	var r *graph.Node
	q := skew(values, l.b)
	if a.config.UseCayleyNeumann == On {
		r = neumann(q, a.config.NumCayleyNeumannTerms)
	} else {
		r = cayley(q)
	}
	var keep *graph.Node
	if !a.config.BlockShare {
		keep = keepBlocks(u, "blocks", a.config.ModuleDropout, l.n)
	}
	return rotate(x, r, keep)
}

// upper returns for each element of a b x b matrix, row by row, its place in the list
// of the elements above the diagonal, row by row, and its sign in the skew-symmetric matrix.
func upper(b int) (places []int32, signs []float32) {
	places, signs = make([]int32, b*b), make([]float32, b*b)
	k := int32(0)
	for i := range b {
		for j := i + 1; j < b; j++ {
			places[i*b+j], signs[i*b+j] = k, 1
			places[j*b+i], signs[j*b+i] = k, -1
			k++
		}
	}
	return places, signs
}

// skew makes skew-symmetric matrices [n, b, b] of lists of their upper elements.
func skew(values *graph.Node, b int) *graph.Node {
	g, n := values.Graph(), values.Shape().Dim(0)
	places, signs := upper(b)
	columns := graph.Gather(graph.Transpose(values, 0, 1), graph.Const(g, places32(places)))
	full := graph.Mul(columns, graph.Reshape(graph.Const(g, signs), b*b, 1)) // [b·b, n]
	return graph.Reshape(graph.Transpose(full, 0, 1), n, b, b)
}

// places32 gives each index an axis of its own, as Gather wants it.
func places32(places []int32) [][]int32 {
	out := make([][]int32, len(places))
	for i, p := range places {
		out[i] = []int32{p}
	}
	return out
}

// neumannWeights are the weights of Q, Q², ... in the series of R-I: all 2, but 1 for the
// last from the third on (_cayley_batch in peft/tuners/oft/layer.py, where 3 terms are 4).
func neumannWeights(terms int) []float64 {
	switch {
	case terms == 2:
		return []float64{2}
	case terms <= 4:
		return []float64{2, 2, 1}
	}
	weights := make([]float64, terms-1)
	for i := range weights {
		weights[i] = 2
	}
	weights[terms-2] = 1
	return weights
}

// neumann is R-I by the series.
func neumann(q *graph.Node, terms int) *graph.Node {
	var sum, power *graph.Node
	for _, weight := range neumannWeights(terms) {
		if power == nil {
			power = q
			sum = graph.MulScalar(q, weight)
			continue
		}
		power = batchDot(power, q)
		sum = graph.Add(sum, graphx.Scale(power, weight))
	}
	return sum
}

// limit is the largest Frobenius norm of a block of n that Coft allows.
func (a *oft) limit(n int) float64 { return a.config.Eps / math.Sqrt(float64(n)) }

// project shrinks the blocks that are beyond the limit. values are half of a
// skew-symmetric matrix's elements.
func (a *oft) project(values *graph.Node) *graph.Node {
	limit := a.limit(values.Shape().Dim(0))
	squares := graph.MulScalar(graph.ReduceAndKeep(graph.Square(values), graph.ReduceSum, 1), 2)
	norm := graph.Sqrt(graph.MaxScalar(squares, limit*limit))
	return graph.Div(graph.MulScalar(values, limit), norm)
}

// coft is an OFT whose values are projected after each step.
type coft struct{ *oft }

// AfterStep implements [peft.StepAdapter].
func (a coft) AfterStep(_ *graph.Node, v *peft.Values, _ func(name string) *graph.Node) map[string]*graph.Node {
	changed := map[string]*graph.Node{}
	for _, p := range a.Params() {
		changed[p.Name] = a.project(v.Get(p.Name))
	}
	return changed
}

// Merges implements [peft.Merger].
func (a *oft) Merges() []string {
	var names []string
	for _, m := range a.targets {
		names = append(names, peft.OwnWeight(m))
	}
	return names
}

// Merge implements [peft.Merger]: W' = W·diag(R)ᵀ.
func (a *oft) Merge(name string, values, _ []float32, value func(name string) []float32) error {
	l := a.byWeight[name]
	list := value(l.Path + "." + oftWeight)
	size := l.b * (l.b - 1) / 2
	if len(list) != a.blocks(l)*size || len(values) != l.In*l.Out {
		return fmt.Errorf("it has %d values, want %d", len(values), l.In*l.Out)
	}
	var blocks []*mat.Dense
	for i := range a.blocks(l) {
		r, err := a.hostBlock(list[i*size:(i+1)*size], l.b, a.blocks(l))
		if err != nil {
			return err
		}
		blocks = append(blocks, r)
	}
	return mergeInto(l.Module, values, func(w []float32) error {
		turnWeight(w, l.Out, blocks)
		return nil
	})
}

// hostBlock is R of one block of n.
func (a *oft) hostBlock(list []float32, b, n int) (*mat.Dense, error) {
	places, signs := upper(b)
	scale := 1.0
	if a.config.Coft {
		var squares float64
		for _, v := range list {
			squares += 2 * float64(v) * float64(v)
		}
		scale = math.Min(1, a.limit(n)/math.Sqrt(squares))
	}
	q := mat.NewDense(b, b, nil)
	for i := range b {
		for j := range b {
			q.Set(i, j, scale*float64(signs[i*b+j])*float64(list[places[i*b+j]]))
		}
	}
	if a.config.UseCayleyNeumann == Off {
		return hostCayley(q)
	}
	r, power := mat.NewDense(b, b, nil), mat.DenseCopyOf(q)
	for i := range b {
		r.Set(i, i, 1)
	}
	for k, weight := range neumannWeights(a.config.NumCayleyNeumannTerms) {
		if k > 0 {
			var next mat.Dense
			next.Mul(power, q)
			power = &next
		}
		var term mat.Dense
		term.Scale(weight, power)
		r.Add(r, &term)
	}
	return r, nil
}
