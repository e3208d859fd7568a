package peft

import (
	"errors"
	"fmt"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
)

// largeTensor is the size from which a tensor is an argument of its own instead of
// a part of the flat vector: joining large gradients would cost a second copy.
const largeTensor = 4 << 20

// IsLarge reports whether a tensor of size elements is an argument of its own.
func IsLarge(size int) bool { return size > largeTensor }

// maxTensor is beyond any real tensor: a rank of a billion is a mistake, to be
// reported before memory runs out.
const maxTensor = 1 << 36

// Layout says where an adapter's tensors lie in a program's arguments: one flat
// float32 vector for all but the large ones, then one argument for each large one.
// It is a function of the parameter list alone.
type Layout struct {
	params []Param
	// offset in the flat vector, or -1-k for the k-th large tensor.
	offset []int
	flat   int
	large  []int // indices into params
	index  map[string]int
}

// NewLayout lays out parameters in the order given.
func NewLayout(params []Param) (*Layout, error) {
	l := &Layout{params: params, offset: make([]int, len(params)), index: make(map[string]int, len(params))}
	for i, p := range params {
		if _, dup := l.index[p.Name]; dup {
			return nil, fmt.Errorf("peft: two trainable tensors have the name %q", p.Name)
		}
		l.index[p.Name] = i
		if size := p.Size(); size <= 0 || size > maxTensor {
			return nil, fmt.Errorf("peft: trainable tensor %q has shape %v", p.Name, p.Shape)
		} else if IsLarge(size) {
			l.offset[i] = -1 - len(l.large)
			l.large = append(l.large, i)
		} else {
			l.offset[i] = l.flat
			l.flat += size
		}
	}
	return l, nil
}

// Params returns the parameters in order. The list is shared and must not be changed.
func (l *Layout) Params() []Param { return l.params }

// NumArguments is the number of tensors that hold the values: the flat vector and
// the large tensors.
func (l *Layout) NumArguments() int { return 1 + len(l.large) }

// FlatSize is the number of elements of the flat vector, at least 1.
func (l *Layout) FlatSize() int { return max(1, l.flat) }

// NumValues is the number of trainable values.
func (l *Layout) NumValues() int {
	n := l.flat
	for _, i := range l.large {
		n += l.params[i].Size()
	}
	return n
}

// Span is a number of successive elements of an argument that an optimizer treats alike.
type Span struct {
	Size    int
	NoDecay bool
	Group   Group
}

// Spans divides each argument into spans.
func (l *Layout) Spans() [][]Span {
	out := make([][]Span, l.NumArguments())
	for i, p := range l.params {
		spans := &out[max(0, -l.offset[i])]
		next := Span{p.Size(), p.NoDecay, p.Group}
		if n := len(*spans); n > 0 && (*spans)[n-1].NoDecay == next.NoDecay && (*spans)[n-1].Group == next.Group {
			(*spans)[n-1].Size += next.Size
		} else {
			*spans = append(*spans, next)
		}
	}
	if l.flat == 0 {
		out[0] = []Span{{Size: l.FlatSize()}}
	}
	return out
}

// build makes argument tensors, each parameter's values set by fill. Large tensors
// are moved to the backend one by one, so that the host holds one at a time; with
// no backend all stay on the host.
func (l *Layout) build(on compute.Backend, fill func(p Param, values []float32) error) ([]*tensors.Tensor, error) {
	out := make([]*tensors.Tensor, 1, l.NumArguments())
	out[0] = tensors.FromShape(shapes.Make(dtypes.Float32, l.FlatSize()))
	var err error
	access := tensors.MutableFlatData(out[0], func(flat []float32) {
		for i, p := range l.params {
			if o := l.offset[i]; o >= 0 && err == nil {
				err = fill(p, flat[o:o+p.Size()])
			}
		}
	})
	if err = errors.Join(access, err); err != nil {
		return nil, err
	}
	for _, i := range l.large {
		t := tensors.FromShape(shapes.Make(dtypes.Float32, l.params[i].Shape...))
		access := tensors.MutableFlatData(t, func(values []float32) { err = fill(l.params[i], values) })
		if err = errors.Join(access, err); err != nil {
			return nil, err
		}
		if on != nil {
			if err := t.ToDevice(on, 0); err != nil {
				return nil, err
			}
		}
		out = append(out, t)
	}
	return out, nil
}

// Host copies every parameter's values from argument tensors to the host.
func (l *Layout) Host(arguments []*tensors.Tensor) (map[string][]float32, error) {
	if err := l.check(arguments); err != nil {
		return nil, err
	}
	host := make([][]float32, len(arguments))
	for i, t := range arguments {
		values := make([]float32, t.Size())
		if err := copyFloats(t, values); err != nil {
			return nil, fmt.Errorf("peft: reading adapter values: %w", err)
		}
		host[i] = values
	}
	byName := make(map[string][]float32, len(l.params))
	for i, p := range l.params {
		if o := l.offset[i]; o >= 0 {
			byName[p.Name] = host[0][o : o+p.Size() : o+p.Size()]
		} else {
			byName[p.Name] = host[-o]
		}
	}
	return byName, nil
}

// FromHost is the inverse of [Layout.Host]: every parameter must be in byName.
func (l *Layout) FromHost(byName map[string][]float32) ([]*tensors.Tensor, error) {
	for _, p := range l.params {
		if got := len(byName[p.Name]); got != p.Size() {
			return nil, fmt.Errorf("peft: tensor %q: want %d values, got %d", p.Name, p.Size(), got)
		}
	}
	return l.build(nil, func(p Param, values []float32) error {
		copy(values, byName[p.Name])
		return nil
	})
}

func (l *Layout) check(arguments []*tensors.Tensor) error {
	if len(arguments) != l.NumArguments() {
		return fmt.Errorf("peft: adapter has %d argument tensors, got %d", l.NumArguments(), len(arguments))
	}
	if got := arguments[0].Size(); got != l.FlatSize() || arguments[0].DType() != dtypes.Float32 {
		return fmt.Errorf("peft: adapter vector: want float32 [%d], got %s", l.FlatSize(), arguments[0].Shape())
	}
	for k, i := range l.large {
		if got, want := arguments[1+k].Shape(), shapes.Make(dtypes.Float32, l.params[i].Shape...); !got.Equal(want) {
			return fmt.Errorf("peft: adapter tensor %q: want %s, got %s", l.params[i].Name, want, got)
		}
	}
	return nil
}

// Bind cuts the argument nodes into one view a parameter.
func (l *Layout) Bind(arguments []*graph.Node) *Values {
	views := make([]*graph.Node, len(l.params))
	for i, p := range l.params {
		if o := l.offset[i]; o >= 0 {
			views[i] = graph.Reshape(graph.Slice(arguments[0], graph.AxisRange(o, o+p.Size())), p.Shape...)
		} else {
			views[i] = arguments[-o]
		}
	}
	return &Values{layout: l, views: views}
}

// Values are an adapter's tensors as nodes of a graph under construction.
type Values struct {
	layout *Layout
	views  []*graph.Node
	// constants are the frozen tensors; nil without any.
	constants *Values
}

// Get returns the node of the named tensor, float32.
func (v *Values) Get(name string) *graph.Node {
	if i, ok := v.layout.index[name]; ok {
		return v.views[i]
	}
	if v.constants == nil {
		panic(fmt.Errorf("peft: adapter has no tensor %q", name))
	}
	return v.constants.Get(name)
}

// Views returns the nodes of the trainable tensors in the layout's order: what to take
// gradients of.
func (v *Values) Views() []*graph.Node { return v.views }

// Join arranges one node a parameter (gradients, say) as arguments: the flat
// vector, then the large tensors.
func (l *Layout) Join(nodes []*graph.Node) []*graph.Node {
	var parts []*graph.Node
	out := make([]*graph.Node, 1, l.NumArguments())
	for i, n := range nodes {
		if l.offset[i] >= 0 {
			parts = append(parts, graph.Reshape(n, -1))
		} else {
			out = append(out, n)
		}
	}
	switch len(parts) {
	case 0:
		out[0] = graph.Zeros(nodes[0].Graph(), shapes.Make(dtypes.Float32, 1))
	case 1:
		out[0] = parts[0]
	default:
		out[0] = graph.Concatenate(parts, 0)
	}
	return out
}
