package models

import (
	"fmt"
	"math/bits"
	"sync"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/site"
)

// programs are the compiled programs of one base: few, since lengths are rounded
// up. They are kept until the base is closed and serve all views of it.
//
//	first: arguments, ids, starts, tasks?                      -> next, logits, keys, values
//	step:  arguments, ids, starts, tasks?, index, keys, values -> next, logits, keys, values
//	grow:  keys, values                                        -> keys, values
//
// ids are [batch, length] int32, or [batch] for one token; starts [batch] int32;
// tasks [batch] int32; index an int32 scalar; next [batch] int32, the largest logit or -1 if the
// logits are not finite; logits [batch, vocabulary] float32; keys and values, one for
// each layer, [batch, slots, kvHeads, headDim].
type programs struct {
	lm      site.LanguageModel
	mu      sync.Mutex
	entries map[programKey]*program
	uploads sync.Mutex
}

// programKey tells programs apart. first has no slots, grow no length.
type programKey struct {
	structure            string
	batch, length, slots int
	toSlots              int
	long                 bool // see site.Cache
	tasks                bool // that each row has one, see site.Tokens
}

type program struct {
	once sync.Once
	exec *model.Exec
	err  error
}

func newPrograms(lm site.LanguageModel) *programs {
	return &programs{lm: lm, entries: map[programKey]*program{}}
}

// count is the number of programs.
func (p *programs) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.entries)
}

func (p *programs) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.entries {
		if e.exec != nil {
			e.exec.Finalize()
		}
	}
	p.entries = map[programKey]*program{}
}

// get returns a program, compiled at its first use for inputs of these shapes.
// Compilation comes before the caller gives buffers away.
func (p *programs) get(key programKey, inputs []shapes.Shape, build func(in []*graph.Node) []*graph.Node) (*model.Exec, error) {
	p.mu.Lock()
	e, ok := p.entries[key]
	if !ok {
		e = &program{}
		p.entries[key] = e
	}
	p.mu.Unlock()
	e.once.Do(func() { e.exec, e.err = p.compile(inputs, build) })
	if e.err != nil {
		p.mu.Lock()
		if p.entries[key] == e {
			delete(p.entries, key) // the next call tries again
		}
		p.mu.Unlock()
		return nil, fmt.Errorf("compile: %w", e.err)
	}
	return e.exec, nil
}

func (p *programs) compile(inputs []shapes.Shape, build func(in []*graph.Node) []*graph.Node) (*model.Exec, error) {
	var exec *model.Exec
	err := graphx.Try(func() (err error) {
		exec, err = model.NewExec(p.lm.Backend(), p.lm.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
			return build(in)
		})
		if err != nil {
			return err
		}
		_, err = exec.Compile(inputs...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return exec.WithName("gopeft:generate"), nil
}

// upload puts a view's values on the device. GoMLX would do it at their first use,
// but not when two goroutines use them first.
func (p *programs) upload(arguments []*tensors.Tensor) error {
	p.uploads.Lock()
	defer p.uploads.Unlock()
	for i, t := range arguments {
		if err := t.MaterializeOnDevice(p.lm.Backend(), true, 0); err != nil {
			return fmt.Errorf("adapter values %d: %w", i, err)
		}
	}
	return nil
}

// passGraph builds first (slots 0) and step.
func (p *programs) passGraph(view site.View, arguments int, key programKey) func(in []*graph.Node) []*graph.Node {
	return func(in []*graph.Node) []*graph.Node {
		pass := &site.Pass{Graph: in[0].Graph(), DType: p.lm.DType(), Hook: view.Hook(in[:arguments])}
		in = in[arguments:]
		// -1 marks a row whose logits were not finite; its id must still be one.
		ids := graph.Reshape(graph.MaxScalar(in[0], 0), key.batch, key.length)
		cache := &site.Cache{Starts: in[1], Long: key.long}
		tokens := site.Tokens{IDs: ids, Cache: cache}
		in = in[2:]
		if key.tasks {
			tokens.Tasks, in = in[0], in[1:]
		}
		if key.slots > 0 {
			layers := p.lm.CacheShape().Layers
			cache.Index, cache.Keys, cache.Values = in[0], in[1:1+layers], in[1+layers:]
		}
		hidden := p.lm.Hidden(pass, tokens)
		hidden = graph.SliceAxis(hidden, 1, graph.AxisRange(key.length-1))
		logits := graph.ConvertDType(p.lm.Logits(pass, hidden), dtypes.Float32)
		logits = graph.Reshape(logits, key.batch, p.lm.VocabSize())
		next := graph.ArgMax(logits, -1)
		finite := graph.IsFinite(graph.ReduceSum(logits, -1))
		next = graph.Where(finite, next, graph.AddScalar(graph.ZerosLike(next), -1))
		return append(append([]*graph.Node{next, logits}, cache.Keys...), cache.Values...)
	}
}

// growGraph makes room for more slots behind those there are.
func growGraph(key programKey) func(in []*graph.Node) []*graph.Node {
	return func(in []*graph.Node) []*graph.Node {
		out := make([]*graph.Node, len(in))
		for i, x := range in {
			zero := graph.ScalarZero(x.Graph(), x.DType())
			out[i] = graph.Pad(x, zero, graph.PadAxis{}, graph.PadAxis{End: key.toSlots - key.slots})
		}
		return out
	}
}

// The sizes of programs. A prompt is padded on the left to a power of two, or from
// chunkLength on to a multiple of it and then read in chunks, so that the scores
// of a long prompt need no more memory than a chunk's.
const (
	leastPrompt = 16
	leastSlots  = 64
	chunkLength = 512
	// slotsAhead is how many new tokens a cache has room for at first; it doubles
	// when it is full.
	slotsAhead = 256
)

func promptBucket(length int) int {
	if length > chunkLength {
		return (length + chunkLength - 1) / chunkLength * chunkLength
	}
	return powerOfTwo(max(length, leastPrompt))
}

func slotBucket(slots int) int { return powerOfTwo(max(slots, leastSlots)) }

// powerOfTwo rounds n, at least 1, up.
func powerOfTwo(n int) int { return 1 << bits.Len(uint(n-1)) }
