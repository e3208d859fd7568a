package models

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"

	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/models/hub"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/site"
)

// ClassifierOptions says how a classifier is loaded. The zero value loads the head that
// the checkpoint has.
type ClassifierOptions struct {
	Options
	// Labels are the names of the labels in the order of the scores. nil: those of
	// config.json, or LABEL_0, LABEL_1, ... for NumLabels of them.
	Labels []string
	// NumLabels is the number of labels. Zero: that of Labels, or of the checkpoint's head.
	NumLabels int
	// PerToken makes a classifier of tokens. Zero: of sequences.
	PerToken bool
	// Seed decides a new head's initial values together with the parameters' names.
	Seed uint64
	// NewHead replaces the checkpoint's head by a new one. Zero: a new head is made only
	// for a checkpoint without one.
	NewHead bool
}

// LoadClassifier reads an encoder from a Hugging Face folder or the hub, as [Load] does,
// with a head that scores labels.
//
// A checkpoint without such a head, a pre-trained encoder, gets a new one: matrices
// from a normal distribution of standard deviation initializer_range, biases 0. Which
// parameters are new is in [Classifier.LoadReport], and under which names the
// checkpoint has others, where it is of the trunk alone. An adapter's file has the head
// and not a pooler below it: where that is new, too, the adapter fits only a base that is
// loaded with the same Seed. Labels that are not the
// checkpoint's are an error unless NewHead is set. At most one ClassifierOptions is used.
func LoadClassifier(ctx context.Context, nameOrPath string, options ...ClassifierOptions) (*Classifier, error) {
	var o ClassifierOptions
	if len(options) > 0 {
		o = options[0]
	}
	dir, err := hub.Resolve(ctx, nameOrPath, o.Hub)
	if err != nil {
		return nil, fmt.Errorf("models: load classifier %q: %w", nameOrPath, err)
	}
	return loadClassifier(ctx, diskFolder(dir), nameOrPath, o)
}

// ClassifierFromFS is [LoadClassifier] from the folder dir of fsys, whose weights are in
// one file.
func ClassifierFromFS(ctx context.Context, fsys fs.FS, dir string, options ...ClassifierOptions) (*Classifier, error) {
	var o ClassifierOptions
	if len(options) > 0 {
		o = options[0]
	}
	f, err := memoryFolder(fsys, dir)
	if err != nil {
		return nil, fmt.Errorf("models: load classifier %q: %w", dir, err)
	}
	return loadClassifier(ctx, f, dir, o)
}

// NewClassifier makes a classifier with random parameters in memory, see [New].
func NewClassifier(ctx context.Context, configJSON []byte, options ClassifierOptions) (*Classifier, error) {
	arch, err := NewArchitecture(configJSON)
	if err != nil {
		return nil, err
	}
	wrap := func(err error) error {
		return fmt.Errorf("models: new classifier %s: %w", arch.Config().ModelType, err)
	}
	e, err := encoderOf(arch)
	if err != nil {
		return nil, wrap(err)
	}
	labels, err := options.newLabels(configJSON)
	if err != nil {
		return nil, wrap(err)
	}
	c, err := newClassifier(e, labels, "", options)
	if err != nil {
		return nil, wrap(err)
	}
	if err := c.randomize(ctx, options.Seed); err != nil {
		return nil, wrap(errors.Join(err, c.Close()))
	}
	return c, nil
}

func newClassifier(e encoder, labels []string, name string, options ClassifierOptions) (*Classifier, error) {
	net, err := newClassifierNetwork(e, labels, options.PerToken)
	if err != nil {
		return nil, err
	}
	c := &Classifier{net: net}
	if err := c.open(net, name, options.Options); err != nil {
		return nil, err
	}
	c.programs = newClassifyPrograms(c)
	return c, nil
}

func loadClassifier(ctx context.Context, f *folder, name string, options ClassifierOptions) (*Classifier, error) {
	c, err := f.classifier(ctx, name, options)
	if err != nil {
		return nil, fmt.Errorf("models: load classifier %q: %w", name, err)
	}
	return c, nil
}

func (f *folder) classifier(ctx context.Context, name string, options ClassifierOptions) (*Classifier, error) {
	arch, err := f.architecture()
	if err != nil {
		return nil, err
	}
	e, err := encoderOf(arch)
	if err != nil {
		return nil, err
	}
	tok, err := f.tokenizer(arch.Config())
	if err != nil {
		return nil, err
	}
	src, err := f.open()
	if err != nil {
		return nil, err
	}
	defer src.Close()
	if src, err = renamed(e, src); err != nil {
		return nil, err
	}
	labels, fresh, err := options.settle(e, src)
	if err != nil {
		return nil, err
	}
	c, err := newClassifier(e, labels, name, options)
	if err != nil {
		return nil, err
	}
	c.folder, c.Tokenizer = f, tok
	c.complete = func(src source) source {
		return withNewHead(src, c.net.newParameters(src, fresh), options.Seed, c.config.InitializerRange)
	}
	complete := c.complete(src)
	if c.report = compare(c.net, complete); !c.report.OK() {
		return nil, errors.Join(&LoadError{Path: f.name, Report: c.report}, c.Close())
	}
	c.report.addNew(complete)
	if err := c.upload(ctx, complete); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// newParameters are those of the head, if it is to be new, and then of what the
// pre-trained trunk lacks below it.
func (n *classifierNetwork) newParameters(src source, fresh bool) []site.Parameter {
	if !fresh {
		return nil
	}
	out := parametersOf(n.head.modules)
	pooling := parametersOf(n.head.pooling)
	if !slices.ContainsFunc(pooling, func(p site.Parameter) bool { _, ok := src.Info(p.Name); return ok }) {
		out = append(out, pooling...)
	}
	return out
}

// newHeadSource is a checkpoint with new parameters in the place of, or besides, its own.
type newHeadSource struct {
	source
	fresh map[string]site.Parameter
	seed  uint64
	std   float64
}

func withNewHead(src source, fresh []site.Parameter, seed uint64, std float64) source {
	if len(fresh) == 0 {
		return src
	}
	s := &newHeadSource{source: src, fresh: map[string]site.Parameter{}, seed: seed, std: std}
	for _, p := range fresh {
		s.fresh[p.Name] = p
	}
	return s
}

func (s *newHeadSource) Names() []string {
	names := sortedKeys(s.fresh)
	replaced := map[string]bool{}
	for _, name := range names {
		replaced[name] = true
		for _, statistic := range quant.Statistics(s.source, name) {
			replaced[statistic] = true
		}
	}
	for _, name := range s.source.Names() {
		if !replaced[name] {
			names = append(names, name)
		}
	}
	return names
}

func (s *newHeadSource) Info(name string) (safetensors.TensorInfo, bool) {
	p, ok := s.fresh[name]
	if !ok {
		return s.source.Info(name)
	}
	info, err := safetensors.Tensor{Name: name, DType: safetensors.F32, Shape: p.Shape}.Info()
	return info, err == nil
}

func (s *newHeadSource) Bytes(name string) ([]byte, error) {
	p, ok := s.fresh[name]
	if !ok {
		return s.source.Bytes(name)
	}
	values := make([]float32, p.Size())
	if len(p.Shape) > 1 {
		r := rand.New(rand.NewPCG(s.seed, parameterSeed(s.seed, name)))
		for i := range values {
			values[i] = float32(r.NormFloat64() * s.std)
		}
	}
	data := make([]byte, 4*len(values))
	return data, safetensors.EncodeFloat32s(data, values, safetensors.F32)
}

func (s *newHeadSource) Release(name string) {
	if _, ok := s.fresh[name]; !ok {
		s.source.Release(name)
	}
}

// addNew counts new parameters apart from loaded ones.
func (r *LoadReport) addNew(src source) {
	s, ok := src.(*newHeadSource)
	if !ok {
		return
	}
	if named, ok := s.source.(*renamedSource); ok {
		r.Renamed = named.stored
	}
	r.New = sortedKeys(s.fresh)
	r.Loaded -= len(r.New)
}
