package models

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/gomlx/compute/dtypes"

	"github.com/gopeft/gopeft/models/hub"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/site"
)

// QuantiseOptions says how [Quantise] reads a model and what it says about it.
type QuantiseOptions struct {
	// Compute is the dtype in which transformers is to compute with four-bit weights.
	// Zero: the one that the weights were stored in.
	Compute dtypes.DType
	// Hub says which revision of a hub id to read and where to keep it.
	Hub hub.Options
}

// QuantiseReport says what quantising did to the weights W, which it made W'.
type QuantiseReport struct {
	// Tensors are those that were quantised, in the order of the model's parameters.
	Tensors []QuantisedTensor
	// MaxError is the largest |W' - W| of all.
	MaxError float32
	// RMSError and RMS are the root mean squares of W' - W and of W over all elements of
	// Tensors.
	RMSError, RMS float64
	// BytesBefore and BytesAfter are the sizes of Tensors, statistics included.
	BytesBefore, BytesAfter int64

	elements int
}

// QuantisedTensor is one weight that was quantised; see [QuantiseReport].
type QuantisedTensor struct {
	Name          string
	MaxError      float32
	RMSError, RMS float64
}

// String is one line.
func (r QuantiseReport) String() string {
	if len(r.Tensors) == 0 {
		return "quantised no tensors"
	}
	return fmt.Sprintf("quantised %d tensors, %.4g MB to %.4g MB; root mean square error %.3g, %.3g %% of the weights'; largest error %.3g",
		len(r.Tensors), float64(r.BytesBefore)/1e6, float64(r.BytesAfter)/1e6, r.RMSError, 100*r.RMSError/r.RMS, r.MaxError)
}

// add takes note of a weight. Sums of squares are kept in place of means until finish.
func (r *QuantiseReport) add(name string, from []float32, stored quant.Stored, before int64) error {
	to, err := stored.Dequantise()
	if err != nil {
		return err
	}
	t := QuantisedTensor{Name: name}
	for i, w := range from {
		off := to[i] - w
		t.MaxError = max(t.MaxError, off, -off)
		t.RMSError += float64(off) * float64(off)
		t.RMS += float64(w) * float64(w)
	}
	r.RMSError, r.RMS, r.MaxError = r.RMSError+t.RMSError, r.RMS+t.RMS, max(r.MaxError, t.MaxError)
	r.elements += len(from)
	t.RMSError, t.RMS = rootMean(t.RMSError, len(from)), rootMean(t.RMS, len(from))
	r.Tensors = append(r.Tensors, t)
	r.BytesBefore += before
	r.BytesAfter += int64(stored.Layout().Bytes())
	return nil
}

func (r *QuantiseReport) finish() {
	if r.elements > 0 {
		r.RMSError, r.RMS = rootMean(r.RMSError, r.elements), rootMean(r.RMS, r.elements)
	}
}

func rootMean(sum float64, n int) float64 { return math.Sqrt(sum / float64(n)) }

// Quantise writes a model, a Hugging Face folder or a hub id as for [Load], to the folder
// dir with the weights of its linear layers in few bits, as transformers and bitsandbytes
// write them: quantization_config in config.json, codes and statistics in place of each
// weight. Heads, embeddings, norms, biases and what the scheme skips are copied bit for bit.
//
// Weights are read, quantised and written one at a time. The folder is written as
// [Model.Export] does it. A model that is already quantised is an error: load and Export it
// first. To quantise what [github.com/gopeft/gopeft/peft.PeftModel.Merge] gives is to make
// an error that the adapter was not trained with: the report says how large it is.
// At most one QuantiseOptions is used.
func Quantise(ctx context.Context, nameOrPath, dir string, scheme quant.Scheme, options ...QuantiseOptions) (QuantiseReport, error) {
	var o QuantiseOptions
	if len(options) > 0 {
		o = options[0]
	}
	report, err := quantise(ctx, nameOrPath, dir, scheme, o)
	if err != nil {
		return QuantiseReport{}, fmt.Errorf("models: quantise %q to %q: %w", nameOrPath, dir, err)
	}
	return report, nil
}

func quantise(ctx context.Context, nameOrPath, dir string, scheme quant.Scheme, o QuantiseOptions) (QuantiseReport, error) {
	if scheme == nil {
		return QuantiseReport{}, errors.New("no scheme: wanted quant.NF4{}, quant.FP4{} or quant.INT8{}")
	}
	path, err := hub.Resolve(ctx, nameOrPath, o.Hub)
	if err != nil {
		return QuantiseReport{}, err
	}
	f := diskFolder(path)
	arch, err := f.architecture()
	if err != nil {
		return QuantiseReport{}, err
	}
	if err := checkScheme(arch, scheme); err != nil {
		return QuantiseReport{}, err
	}
	tok, err := f.tokenizer(arch.Config())
	if err != nil {
		return QuantiseReport{}, err
	}
	m := &core{config: arch.Config(), network: arch, folder: f, scheme: scheme}
	src, err := m.tensors()
	if err != nil {
		return QuantiseReport{}, err
	}
	defer src.Close()
	if report := compare(arch, src); !report.OK() {
		return QuantiseReport{}, &LoadError{Path: f.name, Report: report}
	}
	return m.writeQuantised(ctx, dir, tok, o.Compute, &quantiser{m: m, src: src})
}

// ExportQuantised writes a model whose weights are held in few bits to the folder dir as
// [Quantise] does, with the codes and statistics that the model has: those of a checkpoint
// that bitsandbytes quantised come out byte by byte.
//
// edit, which may be nil, is that of [Model.Export]: it sees a quantised weight's values
// decoded, and if it changes them they are quantised again, in the same way. The report has
// the error of that, and tells only of weights that changed.
func (m *Model) ExportQuantised(ctx context.Context, dir string, edit func(p site.Parameter, values []float32) (changed bool, err error)) (QuantiseReport, error) {
	if m.original != nil {
		return QuantiseReport{}, fmt.Errorf("models: quantised export to %q: the model repeats layers of %q: export that one", dir, m.nameOrPath)
	}
	return m.core.exportQuantised(ctx, dir, m.Tokenizer, edit)
}

// ExportQuantised is [Model.ExportQuantised] of a classifier.
func (c *Classifier) ExportQuantised(ctx context.Context, dir string, edit func(p site.Parameter, values []float32) (changed bool, err error)) (QuantiseReport, error) {
	return c.core.exportQuantised(ctx, dir, c.Tokenizer, edit)
}

func (m *core) exportQuantised(ctx context.Context, dir string, tok *tokenizer.Tokenizer, edit func(site.Parameter, []float32) (bool, error)) (QuantiseReport, error) {
	report, err := func() (QuantiseReport, error) {
		if len(m.quantised) == 0 {
			return QuantiseReport{}, errors.New("the model has no quantised weights: wanted Export")
		}
		src, err := m.exportSource()
		if err != nil {
			return QuantiseReport{}, err
		}
		defer src.Close()
		return m.writeQuantised(ctx, dir, tok, dtypes.InvalidDType, &quantiser{m: m, src: src, edit: edit})
	}()
	if err != nil {
		return QuantiseReport{}, fmt.Errorf("models: quantised export to %q: %w", dir, err)
	}
	return report, nil
}
