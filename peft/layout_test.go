package peft

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/site"
)

// Large tensors are arguments of their own; values survive the way to the device
// and back, and through the views of a program.
func TestLayout(t *testing.T) {
	b := backendtest.Open(t)
	counting := func(from float32) func(*rand.Rand, []float32) error {
		return func(_ *rand.Rand, values []float32) error {
			for i := range values {
				values[i] = from + float32(i%1000)
			}
			return nil
		}
	}
	l, err := NewLayout([]Param{
		{Name: "a", Shape: []int{2, 3}, Init: counting(1)},
		{Name: "big", Shape: []int{largeTensor/4 + 1, 4}, Init: counting(2)},
		{Name: "zero", Shape: []int{5}},
		{Name: "huge", Shape: []int{largeTensor + 7}, Init: counting(3)},
		{Name: "limit", Shape: []int{largeTensor}, Init: counting(4)},
	})
	require.NoError(t, err)
	require.Equal(t, 3, l.NumArguments())
	require.Equal(t, 6+5+largeTensor, l.FlatSize())
	require.Equal(t, l.FlatSize()+largeTensor+4+largeTensor+7, l.NumValues())
	for _, on := range []compute.Backend{nil, b} {
		arguments, err := initialOf(l, on, 1)
		require.NoError(t, err)
		host, err := l.Host(arguments)
		require.NoError(t, err)
		for i, p := range l.Params() {
			require.Len(t, host[p.Name], p.Size())
			want := map[string]float32{"a": 2, "big": 3, "zero": 0, "huge": 4, "limit": 5}[p.Name]
			require.Equal(t, want, host[p.Name][1], p.Name)
			require.Equal(t, l.offset[i] < 0 && on != nil, arguments[max(0, -l.offset[i])].IsOnAnyDevice() && l.offset[i] < 0, p.Name)
		}
		again, err := l.FromHost(host)
		require.NoError(t, err)
		exec, err := graph.NewExec(b, func(in []*graph.Node) []*graph.Node {
			// Views, joined again, are what came in.
			joined := l.Join(l.Bind(in[:3]).Views())
			var out []*graph.Node
			for i, n := range joined {
				out = append(out, graph.ReduceAllMax(graph.Abs(graph.Sub(n, in[3+i]))))
			}
			return out
		})
		require.NoError(t, err)
		out, err := exec.Call(arguments[0], arguments[1], arguments[2], again[0], again[1], again[2])
		require.NoError(t, err)
		for _, x := range out {
			require.Zero(t, tensors.ToScalar[float32](x))
		}
		exec.Finalize()
		delete(host, "zero")
		_, err = l.FromHost(host)
		require.ErrorContains(t, err, `tensor "zero": want 5 values, got 0`)
		_, err = l.Host(arguments[:2])
		require.ErrorContains(t, err, "3 argument tensors, got 2")
		_, err = l.Host([]*tensors.Tensor{arguments[0], arguments[2], arguments[1]})
		require.ErrorContains(t, err, `adapter tensor "big": want`)
	}
	_, err = NewLayout([]Param{{Name: "a", Shape: []int{1}}, {Name: "a", Shape: []int{1}}})
	require.ErrorContains(t, err, `two trainable tensors have the name "a"`)
	_, err = NewLayout([]Param{{Name: "a", Shape: []int{0, 3}}})
	require.ErrorContains(t, err, "has shape [0 3]")
	broken, err := NewLayout([]Param{{Name: "a", Shape: []int{2}, Init: func(*rand.Rand, []float32) error { return errors.New("gone") }}})
	require.NoError(t, err)
	_, err = initialOf(broken, nil, 0)
	require.EqualError(t, err, `peft: initial values of "a": gone`)
}

// tensorList is an adapter that is nothing but tensors.
type tensorList []Param

func (l tensorList) Params() []Param        { return l }
func (l tensorList) Targets() []site.Module { return nil }

func initialOf(l *Layout, on compute.Backend, seed uint64) ([]*tensors.Tensor, error) {
	na := &namedAdapter{adapter: tensorList(l.Params()), layout: l}
	values, _, err := na.initial(on, seed, nil)
	return values, err
}

func TestSpans(t *testing.T) {
	l, err := NewLayout([]Param{
		{Name: "a", Shape: []int{2, 3}}, {Name: "b", Shape: []int{4}}, {Name: "norm", Shape: []int{5}, NoDecay: true},
		{Name: "large", Shape: []int{largeTensor + 1}, NoDecay: true}, {Name: "bias", Shape: []int{7}, NoDecay: true},
		{Name: "other", Shape: []int{2, largeTensor}}, {Name: "c", Shape: []int{1, 1}},
	})
	require.NoError(t, err)
	require.Equal(t, [][]Span{{{Size: 10}, {Size: 5 + 7, NoDecay: true}, {Size: 1}}, {{Size: largeTensor + 1, NoDecay: true}}, {{Size: 2 * largeTensor}}}, l.Spans())
	l, err = NewLayout([]Param{{Name: "large", Shape: []int{largeTensor + 1}, NoDecay: true}})
	require.NoError(t, err)
	require.Equal(t, [][]Span{{{Size: 1}}, {{Size: largeTensor + 1, NoDecay: true}}}, l.Spans())
}

// Reading leaves no second copy of a tensor on the host where the device has its own memory.
func TestCopyFloats(t *testing.T) {
	b := backendtest.Open(t)
	for _, dtype := range []dtypes.DType{dtypes.Float32, dtypes.BFloat16, dtypes.Float16, dtypes.Float64} {
		exec, err := graph.NewExec(b, func(g *graph.Graph) *graph.Node {
			return graph.ConvertDType(graph.Const(g, []float32{1, -2.5, 0.125}), dtype)
		})
		require.NoError(t, err)
		out, err := exec.Call()
		require.NoError(t, err)
		values := make([]float32, 3)
		require.NoError(t, copyFloats(out[0], values))
		require.Equal(t, []float32{1, -2.5, 0.125}, values)
		require.True(t, out[0].IsOnAnyDevice())
		if !b.HasSharedBuffers() {
			require.False(t, out[0].IsLocal())
		}
		exec.Finalize()
	}
	require.ErrorContains(t, copyFloats(tensors.FromValue([]int32{1}), make([]float32, 1)), "is no float")
}
