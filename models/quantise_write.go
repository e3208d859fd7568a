package models

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/gomlx/compute/dtypes"

	"github.com/gopeft/gopeft/internal/atomicfile"
	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/site"
)

// quantiser finds the weights of a model in few bits.
type quantiser struct {
	m      *core
	src    source
	edit   func(site.Parameter, []float32) (bool, error)
	report QuantiseReport
	// dtypes counts the elements of quantised weights by what they were stored in.
	dtypes map[safetensors.DType]int
}

// stored returns a linear module's weight; nil: it is kept as it is.
func (q *quantiser) stored(p site.Parameter, linear map[string]site.Module) (quant.Stored, error) {
	if held, ok := q.m.quantised[p.Name]; ok {
		return q.held(p, held)
	}
	module, ok := linear[p.Name]
	if !ok || len(q.m.quantised) > 0 || q.m.scheme.Skips(module.Path) {
		return nil, nil
	}
	info, _ := q.src.Info(p.Name)
	if isQuantised(q.src, p.Name, info) {
		return nil, errors.New("it is already quantised")
	}
	data, err := q.src.Bytes(p.Name)
	if err != nil {
		return nil, err
	}
	defer q.src.Release(p.Name)
	values := make([]float32, p.Size())
	if err := safetensors.DecodeFloat32s(values, data, info.DType); err != nil {
		return nil, err
	}
	values, dtype := quantisableValues(module, values, info.DType)
	stored, err := q.m.scheme.Store(values, module.WeightShape(), dtype)
	if err != nil {
		return nil, err
	}
	return stored, q.report.add(p.Name, values, stored, info.Size)
}

// held returns a weight that the model holds in few bits, quantised again if edit changes it.
func (q *quantiser) held(p site.Parameter, held quantisedWeight) (quant.Stored, error) {
	stored, err := q.m.fetch(p.Name, held)
	if err != nil || q.edit == nil {
		return stored, err
	}
	values, err := stored.Dequantise()
	if err != nil {
		return nil, err
	}
	if held.flipped {
		values = graphx.Transposed(values, held.Shape()[0], held.Shape()[1])
	}
	changed, err := q.edit(p, values)
	if err != nil || !changed {
		return stored, err
	}
	if held.flipped {
		values = graphx.Transposed(values, held.Shape()[1], held.Shape()[0])
	}
	wanted := slices.Clone(values) // Store rounds
	if stored, err = held.Store(values); err != nil {
		return nil, err
	}
	return stored, q.report.add(p.Name, wanted, stored, int64(held.Bytes()))
}

// writeQuantised writes the folder.
func (m *core) writeQuantised(ctx context.Context, dir string, tok *tokenizer.Tokenizer, compute dtypes.DType, q *quantiser) (QuantiseReport, error) {
	if err := m.mayReplace(dir); err != nil {
		return QuantiseReport{}, err
	}
	q.dtypes = map[safetensors.DType]int{}
	err := atomicfile.WriteDir(dir, func(part string) error {
		if err := keepFiles(dir, part); err != nil {
			return err
		}
		err := q.write(ctx, part)
		if err != nil {
			return err
		}
		json, err := m.quantisedConfig(compute, q.dtypes)
		if err != nil {
			return err
		}
		return m.writeConfigs(part, json, tok)
	})
	q.report.finish()
	return q.report, err
}

// write writes the weights.
func (q *quantiser) write(ctx context.Context, dir string) error {
	// A tensor's size must be known before the first is written, and that of quant_state is
	// not known before its weight is quantised.
	s, err := newSpool(filepath.Join(dir, ".quantised"))
	if err != nil {
		return err
	}
	list, err := q.tensors(ctx, s)
	if err == nil {
		err = writeWeights(dir, list)
	}
	return errors.Join(err, s.remove())
}

func (q *quantiser) tensors(ctx context.Context, s *spool) ([]safetensors.Tensor, error) {
	var list []safetensors.Tensor
	n, linear, quantised := q.m.network, quantisable(q.m.network), false
	for _, p := range n.Parameters() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		stored, err := q.stored(p, linear)
		if err != nil {
			return nil, fmt.Errorf("parameter %q: %w", p.Name, err)
		}
		if stored == nil {
			t, err := copiedTensor(ctx, q.src, p.Name, n, p, q.edit)
			if err != nil {
				return nil, err
			}
			list = append(list, t)
			continue
		}
		quantised = true
		q.dtypes[stored.Layout().DType()] += p.Size()
		tensors, err := stored.Tensors(storedName(n, p.Name))
		for i := 0; i < len(tensors) && err == nil; i++ {
			tensors[i], err = s.add(tensors[i])
		}
		if err != nil {
			return nil, err
		}
		list = append(list, tensors...)
	}
	if !quantised {
		return nil, errors.New("nothing to quantise: every linear layer is skipped")
	}
	return list, nil
}

// spool is a file for tensors on their way into another.
type spool struct {
	file *os.File
	size int64
}

func newSpool(path string) (*spool, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	return &spool{file: f}, err
}

// add puts a tensor's bytes into the file, and has it read them there.
func (s *spool) add(t safetensors.Tensor) (safetensors.Tensor, error) {
	at, size := s.size, int64(len(t.Bytes))
	if _, err := s.file.Write(t.Bytes); err != nil {
		return t, err
	}
	s.size += size
	t.Bytes = nil
	t.Data = func(w io.Writer) error {
		_, err := io.Copy(w, io.NewSectionReader(s.file, at, size))
		return err
	}
	return t, nil
}

func (s *spool) remove() error { return errors.Join(s.file.Close(), os.Remove(s.file.Name())) }
