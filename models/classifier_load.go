package models

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"

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

// labelFields is what config.json says of labels and of the head.
type labelFields struct {
	names         []string // by id; nil without
	architectures []string
	problem       string
}

func readLabels(configJSON []byte) (labelFields, error) {
	var l labelFields
	f, err := newFields(configJSON)
	if err != nil {
		return l, err
	}
	var byID map[string]string
	f.get("id2label", "an object of names by number", &byID)
	f.get("architectures", "a list of names", &l.architectures)
	l.problem = f.textOr("problem_type", "")
	if len(byID) > 0 {
		l.names = make([]string, len(byID))
	}
	for i := range l.names {
		name, ok := byID[fmt.Sprint(i)]
		if !ok {
			f.fail("id2label: wanted the ids 0 to %d, got none of %d", len(byID)-1, i)
			break
		}
		l.names[i] = name
	}
	return l, f.err()
}

// numbered are the names that transformers gives labels without.
func numbered(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("LABEL_%d", i)
	}
	return names
}

// maxLabels bounds what a configuration can ask for.
const maxLabels = 1 << 20

// wanted returns the labels that the options ask for, nil if they leave it open.
func (o ClassifierOptions) wanted(stored []string) ([]string, error) {
	n := len(o.Labels)
	switch {
	case n > 0 && o.NumLabels != 0 && o.NumLabels != n:
		return nil, fmt.Errorf("NumLabels is %d, but Labels has %d names", o.NumLabels, n)
	case n == 0 && o.NumLabels == 0:
		return nil, nil
	case n == 0:
		n = o.NumLabels
	}
	if n < 2 || n > maxLabels {
		return nil, fmt.Errorf("wanted 2 to %d labels, got %d (a single score, regression, is not supported)", maxLabels, n)
	}
	if len(o.Labels) == 0 {
		if len(stored) == n {
			return stored, nil
		}
		return numbered(n), nil
	}
	seen := map[string]int{}
	for i, name := range o.Labels {
		if name == "" {
			return nil, fmt.Errorf("label %d has no name", i)
		}
		if j, twice := seen[name]; twice {
			return nil, fmt.Errorf("labels %d and %d are both %q", j, i, name)
		}
		seen[name] = i
	}
	return slices.Clone(o.Labels), nil
}

// newLabels are the labels of a classifier that is made and not loaded.
func (o ClassifierOptions) newLabels(configJSON []byte) ([]string, error) {
	stored, err := readLabels(configJSON)
	if err != nil {
		return nil, err
	}
	labels, err := o.wanted(stored.names)
	if err != nil || labels != nil {
		return labels, err
	}
	if len(stored.names) < 2 {
		return nil, errors.New("how many labels? set Labels or NumLabels")
	}
	return stored.names, nil
}

// settle decides on the labels and whether the head is new.
func (o ClassifierOptions) settle(e encoder, src source) (labels []string, fresh bool, err error) {
	stored, err := readLabels(e.options().config.JSON)
	if err != nil {
		return nil, false, err
	}
	if labels, err = o.wanted(stored.names); err != nil {
		return nil, false, err
	}
	rows := headRows(e, src, o.PerToken)
	if rows == 0 || o.NewHead {
		if labels == nil {
			if rows == 0 {
				return nil, false, errors.New("the checkpoint has no classification head: set Labels or NumLabels for a new one")
			}
			return nil, false, errors.New("set Labels or NumLabels for the new head")
		}
		return labels, true, nil
	}
	if err := stored.fits(o.PerToken); err != nil {
		return nil, false, err
	}
	own := stored.names
	if len(own) != rows {
		own = numbered(rows)
	}
	if labels == nil {
		labels = own
	}
	if len(labels) != rows {
		return nil, false, fmt.Errorf("the checkpoint's head has %d labels, wanted %d: set NewHead to start a new one", rows, len(labels))
	}
	for i, name := range labels {
		if len(o.Labels) > 0 && name != own[i] && !slices.Equal(own, numbered(rows)) {
			return nil, false, fmt.Errorf("label %d is %q in the checkpoint, wanted %q: set NewHead to start a new head", i, own[i], name)
		}
	}
	return labels, false, nil
}

// headRows is the number of labels of the head that the checkpoint has, 0 without one.
func headRows(e encoder, src source, perToken bool) int {
	h := e.sequenceHead(2)
	if perToken {
		h = tokenHead(e.options(), 2)
	}
	last := h.modules[len(h.modules)-1]
	info, ok := src.Info(last.Weight())
	if ok && isQuantised(src, last.Weight(), info) {
		info, ok = src.Info(last.BiasName()) // codes have no rows
	}
	if !ok || len(info.Shape) == 0 {
		return 0
	}
	return info.Shape[0]
}

// fits refuses heads that were trained for something else.
func (l labelFields) fits(perToken bool) error {
	for _, name := range l.architectures {
		if perToken && strings.HasSuffix(name, "ForSequenceClassification") {
			return fmt.Errorf("the checkpoint is a %s, and PerToken is set: set NewHead to start a new head", name)
		}
		if !perToken && strings.HasSuffix(name, "ForTokenClassification") {
			return fmt.Errorf("the checkpoint is a %s: set PerToken, or NewHead to start a new head", name)
		}
		if strings.HasSuffix(name, "ForMultipleChoice") {
			return fmt.Errorf("the checkpoint is a %s, which is not supported: set NewHead to start a new head", name)
		}
	}
	if l.problem != "" && l.problem != "single_label_classification" {
		return fmt.Errorf("problem_type %q is not supported: wanted single_label_classification", l.problem)
	}
	return nil
}

// withLabels is config.json of the classifier.
func withLabels(configJSON []byte, class string, labels []string, perToken bool) ([]byte, error) {
	var values map[string]json.RawMessage
	if err := json.Unmarshal(configJSON, &values); err != nil {
		return nil, err
	}
	byID, byName := map[int]string{}, map[string]int{}
	for i, name := range labels {
		byID[i], byName[name] = name, i
	}
	kind := "SequenceClassification"
	if perToken {
		kind = "TokenClassification"
	}
	for name, value := range map[string]any{
		"id2label": byID, "label2id": byName, "architectures": []string{class + "For" + kind}, "problem_type": "single_label_classification",
	} {
		data, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		values[name] = data
	}
	if perToken {
		delete(values, "problem_type")
	}
	delete(values, "num_labels")
	return json.MarshalIndent(values, "", "  ")
}
