package lora

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"

	"github.com/gomlx/gomlx/core/graph"
	"gonum.org/v1/gonum/mat"

	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// EvaConfig are the settings of [CalibrateEVA].
type EvaConfig struct {
	// Rho says how far ranks are redistributed: up to Rho times the rank of a module, at
	// least 1. 0: 2. 1 leaves the ranks as they are.
	Rho float64
	// Tau is the cosine between a component and what it was a batch before from which it
	// counts as found, up to 1. 0: 0.99.
	Tau float64
	// Whiten divides each component by the root of its singular value.
	Whiten bool
	// KeepAlpha leaves lora_alpha as it is where the rank changes. false: lora_alpha changes
	// with the rank, so that the scale stays. (adjust_scaling_factors in peft)
	KeepAlpha bool
	// MaxPasses is how often the data is gone through at most. 0: 100. (peft never gives up.)
	MaxPasses int
}

func (e EvaConfig) withDefaults() EvaConfig {
	if e.Rho == 0 {
		e.Rho = 2
	}
	if e.Tau == 0 {
		e.Tau = 0.99
	}
	if e.MaxPasses == 0 {
		e.MaxPasses = 100
	}
	return e
}

func (e EvaConfig) check() error {
	switch {
	case !(e.Rho >= 1) || math.IsInf(e.Rho, 0):
		return fmt.Errorf("rho is %g, want at least 1", e.Rho)
	case !(e.Tau >= 0 && e.Tau <= 1):
		return fmt.Errorf("tau is %g, want 0 to 1", e.Tau)
	case e.MaxPasses < 0:
		return fmt.Errorf("MaxPasses is %d, want more than 0", e.MaxPasses)
	}
	return nil
}

// CalibrateEVA prepares the initialisation of EVA, explained variance adaptation (Paischer
// et al. 2024, arXiv:2410.07170), and returns the configuration to make the adapter with.
//
// It runs the base on the batches, round and round, and finds the principal components of
// each target's inputs, incrementally, until those that are needed no longer change. The
// sum of all ranks is then given to the components that explain most of their module's
// variance: a target can get up to Rho times its rank, or none, which takes it out of the
// targets. The configuration names targets, ranks and scales as they came out. A starts at
// the components, B at zero.
//
// Targets that are embeddings start as by default and keep their ranks.
func CalibrateEVA(ctx context.Context, base site.Base, config LoraConfig, data []Batch, options EvaConfig) (LoraConfig, error) {
	c, err := calibrateEVA(ctx, base, config, data, options.withDefaults())
	if err != nil {
		return LoraConfig{}, fmt.Errorf("lora: EVA: %w", err)
	}
	return c, nil
}

func calibrateEVA(ctx context.Context, base site.Base, config LoraConfig, data []Batch, options EvaConfig) (LoraConfig, error) {
	if err := options.check(); err != nil {
		return LoraConfig{}, err
	}
	a, layers, err := config.linears(base, data)
	if err != nil {
		return LoraConfig{}, err
	}
	e, err := newEVA(base, layers, data, options)
	if err != nil {
		return LoraConfig{}, err
	}
	defer e.close()
	if err := e.fit(ctx, data); err != nil {
		return LoraConfig{}, err
	}
	return e.configure(config, a)
}

// eva is a calibration under way.
type eva struct {
	options   EvaConfig
	layers    []layer
	observers []*observer
	chunks    [][]layer
	// inputs are the distinct inputs of layers, of names the index.
	inputs []*evaInput
	of     map[string]int
	ranks  map[string]int
	budget int
}

// evaInput is an input that some modules share.
type evaInput struct {
	*incrementalPCA
	paths    []string // of the modules
	features int
	done     bool
}

// maxObserved is the number of values that one run brings to the host.
const maxObserved = 1 << 28

func newEVA(base site.Base, layers []layer, data []Batch, options EvaConfig) (*eva, error) {
	e := &eva{options: options, layers: layers, of: map[string]int{}, ranks: map[string]int{}}
	tokens := 0
	for _, b := range data {
		tokens = max(tokens, len(b.IDs)*len(b.IDs[0]))
	}
	e.chunks = chunks(layers, func(l layer) int { return tokens * l.In }, maxObserved)
	for _, chunk := range e.chunks {
		o, err := observe(base, chunk, func(x, _ *graph.Node) *graph.Node {
			// A node of its own: the Go backend fails if the outputs stand before what is built last.
			return graph.Reshape(x, -1, x.Shape().Dim(2))
		})
		if err != nil {
			e.close()
			return nil, err
		}
		e.observers = append(e.observers, o)
	}
	for _, l := range layers {
		e.budget += l.r
	}
	return e, nil
}

func (e *eva) close() {
	for _, o := range e.observers {
		o.close()
	}
}

// fit goes through the data until the components are found.
func (e *eva) fit(ctx context.Context, data []Batch) error {
	for range e.options.MaxPasses {
		for _, b := range data {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := e.batch(b); err != nil {
				return err
			}
			if e.finished() {
				return nil
			}
		}
	}
	for _, in := range e.inputs {
		if in.vectors == nil {
			return fmt.Errorf("no batch has the %d tokens in use that module %q needs for its components", in.components, in.paths[0])
		}
	}
	return fmt.Errorf("the components do not settle in %d passes over the data: lower Tau, or give larger batches", e.options.MaxPasses)
}

// finished redistributes the ranks and reports whether all that are needed are found.
func (e *eva) finished() bool {
	if slices.ContainsFunc(e.inputs, func(in *evaInput) bool { return in.vectors == nil }) {
		return false
	}
	e.distribute()
	done := true
	for _, in := range e.inputs {
		needed := 0
		for _, path := range in.paths {
			needed = max(needed, e.ranks[path])
		}
		in.done = in.converged(needed, e.options.Tau)
		done = done && in.done
	}
	return done
}

// batch adds the inputs of one batch to all components that are not found.
func (e *eva) batch(b Batch) error {
	for i, o := range e.observers {
		results, err := o.run(b)
		if err != nil {
			return err
		}
		e.group(o, e.chunks[i])
		seen := map[int]bool{}
		for _, l := range e.chunks[i] {
			k := e.of[l.Path]
			in := e.inputs[k]
			if seen[k] || in.done {
				continue
			}
			seen[k] = true
			X := used(results[o.results[l.Path]], b, l.In)
			if X == nil {
				continue
			}
			if samples, _ := X.Dims(); samples < in.components {
				continue
			}
			if err := in.add(X); err != nil {
				return fmt.Errorf("module %q: %w", l.Path, err)
			}
		}
	}
	return nil
}

// group finds, after an observer's first run, which layers share an input.
func (e *eva) group(o *observer, layers []layer) {
	if _, ok := e.of[layers[0].Path]; ok {
		return
	}
	first := len(e.inputs)
	for _, l := range layers {
		k := first + o.results[l.Path]
		for len(e.inputs) <= k {
			e.inputs = append(e.inputs, &evaInput{incrementalPCA: &incrementalPCA{}})
		}
		in := e.inputs[k]
		in.paths, in.features, in.key = append(in.paths, l.Path), l.In, l.Path
		// No more than there are features to tell apart.
		in.components = max(in.components, min(int(math.RoundToEven(float64(l.r)*e.options.Rho)), l.In))
		e.of[l.Path] = k
	}
}

// used returns the rows of the tokens that count, nil without any.
func used(values []float32, b Batch, features int) *mat.Dense {
	var kept []float64
	rows := 0
	for i, mask := range b.mask() {
		for j, m := range mask {
			if m == 0 {
				continue
			}
			rows++
			at := (i*len(mask) + j) * features
			for _, v := range values[at : at+features] {
				kept = append(kept, float64(v))
			}
		}
	}
	if rows == 0 {
		return nil
	}
	return mat.NewDense(rows, features, kept)
}

// distribute gives the sum of all ranks to the components that explain most.
func (e *eva) distribute() {
	type candidate struct {
		path      string
		explained float64
	}
	var all []candidate
	for _, l := range e.layers {
		for _, v := range e.inputs[e.of[l.Path]].explained {
			all = append(all, candidate{l.Path, v})
		}
		e.ranks[l.Path] = 0
	}
	slices.SortStableFunc(all, func(a, b candidate) int {
		switch {
		case a.explained > b.explained:
			return -1
		case a.explained < b.explained:
			return 1
		}
		return 0
	})
	for _, c := range all[:min(e.budget, len(all))] {
		e.ranks[c.path]++
	}
}

// configure writes what was found into the configuration.
func (e *eva) configure(config LoraConfig, a *adapter) (LoraConfig, error) {
	c := config
	c.InitLoraWeights = InitEva
	c.calibration = &calibration{components: map[string][]float32{}}
	c.RankPattern, c.AlphaPattern = nil, nil
	var kept []site.Module
	for _, m := range a.targets {
		l := a.layers[m.Path]
		rank, alpha := l.r, l.alpha
		if m.Kind == site.Linear {
			rank = e.ranks[m.Path]
			if rank == 0 {
				continue
			}
			if !e.options.KeepAlpha {
				alpha *= float64(rank) / float64(l.r)
			}
			c.calibration.components[m.Path] = e.components(m.Path, rank)
		}
		kept = append(kept, m)
		pattern := "^" + regexp.QuoteMeta(m.Path)
		if rank != c.R {
			c.RankPattern = append(c.RankPattern, peft.Pattern{Pattern: pattern, Value: float64(rank)})
		}
		if alpha != orEight(c.LoraAlpha) {
			c.AlphaPattern = append(c.AlphaPattern, peft.Pattern{Pattern: pattern, Value: alpha})
		}
	}
	if len(kept) == 0 {
		return LoraConfig{}, errors.New("no target is left: the inputs do not vary")
	}
	c.TargetModules = peft.Exactly(kept, a.modules)
	c.ExcludeModules, c.LayersToTransform, c.LayersPattern = peft.Targets{}, nil, nil
	settings, err := e.options.encode()
	if err != nil {
		return LoraConfig{}, err
	}
	return c.withUnknown("eva_config", settings), nil
}

// components are the first rows of A, for a module.
func (e *eva) components(path string, rank int) []float32 {
	in := e.inputs[e.of[path]]
	A := mat.DenseCopyOf(in.vectors.Slice(0, rank, 0, in.features))
	if e.options.Whiten {
		for i := range rank {
			row := A.RawRowView(i)
			for j := range row {
				row[j] /= math.Sqrt(in.values[i])
			}
		}
	}
	return floats(A)
}

// encode writes the settings as peft does.
func (e EvaConfig) encode() (json.RawMessage, error) {
	return json.Marshal(map[string]any{
		"rho": pyjson.Float(e.Rho), "tau": pyjson.Float(e.Tau), "use_label_mask": true, "label_mask_value": -100,
		"whiten": e.Whiten, "adjust_scaling_factors": !e.KeepAlpha,
	})
}

// withUnknown sets a key of the file that has no field.
func (c LoraConfig) withUnknown(key string, value json.RawMessage) LoraConfig {
	c.Unknown = maps.Clone(c.Unknown)
	if c.Unknown == nil {
		c.Unknown = map[string]json.RawMessage{}
	}
	c.Unknown[key] = value
	return c
}

// evaParams are A, which starts at the components, and B, which starts at zero.
func (l layer) evaParams(c *calibration) ([]peft.Param, error) {
	all := l.params(InitDefault)
	components, ok := c.components[l.Path]
	if !ok || len(components) != l.r*l.In {
		return nil, fmt.Errorf("module %q was not calibrated for rank %d: the configuration must stay as CalibrateEVA returned it", l.Path, l.r)
	}
	all[0].Init = func(_ *rand.Rand, values []float32) error {
		copy(values, components)
		return nil
	}
	return all, nil
}
