package models

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/site"
)

// quantisedWeight is a parameter that is held in few bits.
type quantisedWeight struct {
	quant.Layout
	// flipped is true for a weight stored [in, out], whose codes are of [out, in].
	flipped bool
}

// quantisable returns the linear modules, but heads, by the names of their weights.
func quantisable(n network) map[string]site.Module {
	out := map[string]site.Module{}
	for _, m := range n.Modules() {
		if m.Kind == site.Linear && !m.Head && m.TiedTo == "" {
			out[m.Weight()] = m
		}
	}
	for _, m := range n.Modules() { // a head may share the weight of a layer
		if m.Head {
			delete(out, m.Weight())
		}
	}
	return out
}

// readable returns the linear modules whose weights a checkpoint may have in few bits.
// Beside those that are quantised here they are the heads of classifiers: transformers
// spares a head's bias alone.
func readable(n network) map[string]site.Module {
	out := quantisable(n)
	if c, ok := n.(*classifierNetwork); ok {
		for _, m := range c.head.modules {
			if m.Kind == site.Linear {
				out[m.Weight()] = m
			}
		}
	}
	return out
}

// checkScheme refuses settings that make no sense, and modules to skip that are none of n.
func checkScheme(n network, scheme quant.Scheme) error {
	var linear []string
	for _, m := range n.Modules() {
		if m.Kind == site.Linear {
			linear = append(linear, m.Path)
		}
	}
	return quant.Check(scheme, linear)
}

// quantises reports whether the model is to hold a parameter in few bits.
func (m *core) quantises(p site.Parameter) (site.Module, bool) {
	module, ok := quantisable(m.network)[p.Name]
	return module, ok && m.scheme != nil && !m.scheme.Skips(module.Path)
}

// setQuantised makes the frozen variables of a weight, whose values are as stored.
func (m *core) setQuantised(module site.Module, values []float32, dtype safetensors.DType) error {
	values, dtype = quantisableValues(module, values, dtype)
	stored, err := m.scheme.Store(values, module.WeightShape(), dtype)
	if err != nil {
		return err
	}
	return m.setStored(module, stored)
}

// quantisableValues returns a weight's values as [out, in], and the dtype they have then.
func quantisableValues(module site.Module, values []float32, dtype safetensors.DType) ([]float32, safetensors.DType) {
	if module.Transposed {
		values = graphx.Transposed(values, module.In, module.Out)
	}
	if dtype == safetensors.F64 {
		dtype = safetensors.F32
	}
	return values, dtype
}

func (m *core) setStored(module site.Module, stored quant.Stored) error {
	if got, want := stored.Layout().Shape(), module.WeightShape(); !slices.Equal(got, want) {
		return fmt.Errorf("the checkpoint has a quantised weight of shape %v, wanted %v", got, want)
	}
	name := module.Weight()
	for _, a := range stored.Arrays() {
		t, err := tensors.FromRaw(m.backend, 0, shapes.Make(a.DType, a.Shape...), a.Data)
		if err == nil {
			err = m.setParameter(arrayName(name, a.Name), t)
		}
		if err != nil {
			return err
		}
	}
	m.quantised[name] = quantisedWeight{stored.Layout(), module.Transposed}
	return nil
}

// arrayName is the variable's name of a part of a quantised weight.
func arrayName(weight, array string) string {
	if array == "" {
		return weight
	}
	return weight + "." + array
}

// dequantised builds a quantised weight as it is stored, tied to a node if that is not nil.
func (b *Blocks) dequantised(name string, q quantisedWeight, tie *graph.Node) *graph.Node {
	w := q.Weight(func(array string) *graph.Node {
		return b.model.store.GetVariable(site.VariablePath(arrayName(name, array))).NodeValue(b.Graph)
	}, b.DType, tie)
	if q.flipped {
		w = graph.Transpose(w, 0, 1)
	}
	return w
}

// quantisedProduct is x·Wᵀ for a quantised weight that is built for this product alone: it
// is tied to x, so that no layer's weight is built before its turn, and in training it is
// built again in the backward pass, tied to the product's gradient. The checkpoint is a
// number tied to x and not x itself, which the backward pass would have to keep. Inside a
// checkpointed block all that happens anyway, and an inner region would end the block's own.
func (b *Blocks) quantisedProduct(m site.Module, q quantisedWeight, x *graph.Node) *graph.Node {
	product := func(tie *graph.Node) *graph.Node {
		w := b.Parameter(m.Weight(), func() *graph.Node { return b.dequantised(m.Weight(), q, tie) })
		return linear(m, x, graph.ConvertDType(w, b.DType))
	}
	if b.Checkpoint || !b.Training() {
		return product(x)
	}
	tie := graph.SchedulingBarrier(graph.Const(x.Graph(), float32(0)), x)
	return product(tie.Checkpoint()).StopCheckpoint()
}

// ParameterBytes is the memory that a parameter takes on the device: its values or codes,
// and what a quantised one has besides, see [quant.Layout].
func (m *core) ParameterBytes(p site.Parameter) (values, statistics int64) {
	if q, ok := m.quantised[p.Name]; ok {
		return layoutBytes(q.Layout)
	}
	return int64(p.Size()) * int64(m.dtype.Size()), 0
}

func layoutBytes(l quant.Layout) (values, statistics int64) {
	return int64(l.Bytes() - l.Statistics()), int64(l.Statistics())
}

// ReadParameter implements [site.Reader].
func (m *core) ReadParameter(name string, values []float32) (dtypes.DType, bool, error) {
	q, ok := m.quantised[name]
	if !ok {
		return dtypes.InvalidDType, false, nil
	}
	read, err := m.quantisedValues(name, q)
	if err == nil && len(read) != len(values) {
		err = fmt.Errorf("parameter %q has %d values, wanted %d", name, len(read), len(values))
	}
	copy(values, read)
	return m.dtype, true, err
}

// quantisedValues fetches a quantised weight and decodes it, in the stored orientation.
func (m *core) quantisedValues(name string, q quantisedWeight) ([]float32, error) {
	stored, err := m.fetch(name, q)
	if err != nil {
		return nil, err
	}
	values, err := stored.Dequantise()
	if err == nil && q.flipped {
		values = graphx.Transposed(values, q.Shape()[0], q.Shape()[1])
	}
	return values, err
}

// fetch copies a quantised weight from the device.
func (m *core) fetch(name string, q quantisedWeight) (quant.Stored, error) {
	return q.Restore(func(array string) ([]byte, error) {
		return storeBytes(m.store.GetVariable(site.VariablePath(arrayName(name, array))))
	})
}

// dequantisedSource is a checkpoint whose weights are replaced by those that a quantised
// model has: what an adapter was trained on, and is merged into.
type dequantisedSource struct {
	source
	m *core
}

func (s dequantisedSource) Info(name string) (safetensors.TensorInfo, bool) {
	info, ok := s.source.Info(name)
	q, quantised := s.m.quantised[name]
	if !ok || !quantised || isFloat(info.DType) {
		return info, ok
	}
	// bitsandbytes' own checkpoint: the weight is written in the dtype it was made from.
	shape := slices.Clone(q.Shape())
	if q.flipped {
		slices.Reverse(shape)
	}
	info, err := safetensors.Tensor{Name: name, DType: q.DType(), Shape: shape}.Info()
	return info, err == nil
}

func (s dequantisedSource) Bytes(name string) ([]byte, error) {
	q, ok := s.m.quantised[name]
	if !ok {
		return s.source.Bytes(name)
	}
	values, err := s.m.quantisedValues(name, q)
	if err != nil {
		return nil, err
	}
	info, ok := s.Info(name)
	if !ok {
		return nil, fmt.Errorf("no parameter %q", name)
	}
	data := make([]byte, len(values)*info.DType.Bits()/8)
	return data, safetensors.EncodeFloat32s(data, values, info.DType)
}

// withoutQuantization returns config.json without what it says about stored bits.
func withoutQuantization(data []byte) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, err
	}
	if _, ok := fields[quantizationKey]; !ok {
		return data, nil
	}
	delete(fields, quantizationKey)
	return json.MarshalIndent(fields, "", "  ")
}

const quantizationKey = "quantization_config"

// checkQuantization refuses checkpoints that anything but bitsandbytes has quantised.
func checkQuantization(f *fields) {
	raw, ok := f.values[quantizationKey]
	if !ok || string(raw) == "null" {
		return
	}
	var q struct {
		Method string `json:"quant_method"`
		Four   bool   `json:"load_in_4bit"`
		Eight  bool   `json:"load_in_8bit"`
		Old4   bool   `json:"_load_in_4bit"`
		Old8   bool   `json:"_load_in_8bit"`
	}
	err := json.Unmarshal(raw, &q)
	switch {
	case err != nil:
		f.fail("quantization_config: %v", err)
	case q.Method != "bitsandbytes":
		f.fail("quantization_config: quant_method %q is not supported; supported is bitsandbytes", q.Method)
	case !(q.Four || q.Eight || q.Old4 || q.Old8):
		f.fail("quantization_config: neither load_in_4bit nor load_in_8bit is set")
	}
}

// ErrQuantised is the error of loading a checkpoint that is already quantised with
// [Options].Quantization: it loads as it is without.
var ErrQuantised = errors.New("the checkpoint is already quantised: Quantization must be nil")
