package peft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/internal/atomicfile"
	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/site"
)

// Export writes what the model reads of its store to the folder dir: model.safetensors
// (in shards above 5 GB), each variable under its path with dots for slashes. A model that
// was in dir is replaced; any other file in dir is an error. See [site.Exporter].
//
// The code of a model function is not part of it. [WrappedModel.Merged] gives a store
// for the same function.
func (w *WrappedModel) Export(ctx context.Context, dir string, edit func(p site.Parameter, values []float32) (changed bool, err error)) error {
	if err := w.export(ctx, dir, edit); err != nil {
		return fmt.Errorf("peft: export to %q: %w", dir, err)
	}
	return nil
}

func (w *WrappedModel) export(ctx context.Context, dir string, edit func(site.Parameter, []float32) (bool, error)) error {
	entries, err := os.ReadDir(dir)
	if err == nil {
		for _, e := range entries {
			if e.IsDir() || !safetensors.IsModelFile(e.Name()) {
				return fmt.Errorf("the folder has %q, which is no part of a model and would be lost: wanted a new or empty folder", e.Name())
			}
		}
	}
	var list []safetensors.Tensor
	var infos []safetensors.TensorInfo
	for _, p := range w.exported() {
		v := w.plain.GetVariable(site.VariablePath(p.Name))
		dtype, ok := exportDTypes[v.DType()]
		if !ok {
			return fmt.Errorf("variable %q: safetensors has no dtype %s", v.Path(), v.DType())
		}
		t := safetensors.Tensor{Name: p.Name, DType: dtype, Shape: p.Shape, Data: func(out io.Writer) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			data, _, err := w.edited(p, dtype, edit)
			if err == nil {
				_, err = out.Write(data)
			}
			return err
		}}
		info, err := t.Info()
		if err != nil {
			return err
		}
		list, infos = append(list, t), append(infos, info)
	}
	return atomicfile.WriteDir(dir, func(dir string) error {
		if err := safetensors.WriteSharded(dir, map[string]string{"format": "pt"}, list, safetensors.DefaultShardSize); err != nil {
			return err
		}
		return safetensors.Verify(dir, infos)
	})
}

// exported are the parameters, and what else the model reads.
func (w *WrappedModel) exported() []site.Parameter {
	all := w.Parameters()
	for _, name := range w.buffers {
		all = append(all, site.Parameter{Name: name, Shape: w.plain.GetVariable(site.VariablePath(name)).Shape().Dimensions})
	}
	return all
}

var exportDTypes = map[dtypes.DType]safetensors.DType{
	dtypes.Float32: safetensors.F32, dtypes.Float16: safetensors.F16, dtypes.BFloat16: safetensors.BF16, dtypes.Float64: safetensors.F64,
	dtypes.Int8: safetensors.I8, dtypes.Int16: safetensors.I16, dtypes.Int32: safetensors.I32, dtypes.Int64: safetensors.I64,
	dtypes.Uint8: safetensors.U8, dtypes.Uint16: safetensors.U16, dtypes.Uint32: safetensors.U32, dtypes.Uint64: safetensors.U64,
	dtypes.Bool: safetensors.BOOL,
}

// edited returns the bytes of a parameter after edit, and whether it changed them.
func (w *WrappedModel) edited(p site.Parameter, dtype safetensors.DType, edit func(site.Parameter, []float32) (bool, error)) (data []byte, changed bool, err error) {
	data, err = w.bytesOf(p.Name, dtype)
	if err != nil || edit == nil || !isFloat(dtype) {
		return data, false, err
	}
	values := make([]float32, p.Size())
	if err := safetensors.DecodeFloat32s(values, data, dtype); err != nil {
		return nil, false, err
	}
	if changed, err = edit(p, values); err != nil || !changed {
		return data, false, err
	}
	if err := safetensors.EncodeFloat32s(data, values, dtype); err != nil {
		return nil, false, err
	}
	if err := safetensors.CheckRange(values, data, dtype); err != nil {
		return nil, false, fmt.Errorf("parameter %q: %w", p.Name, err)
	}
	return data, true, nil
}

// bytesOf copies a parameter's values, decoded if it is held in few bits.
func (w *WrappedModel) bytesOf(name string, dtype safetensors.DType) (data []byte, err error) {
	if q, ok := w.quantised[name]; ok {
		values, err := w.decodedValues(q)
		if err != nil {
			return nil, err
		}
		data = make([]byte, len(values)*dtype.Bits()/8)
		return data, safetensors.EncodeFloat32s(data, values, dtype)
	}
	t, err := w.store.GetVariable(site.VariablePath(name)).Value()
	if err != nil {
		return nil, err
	}
	err = withBytes(t, func(b []byte) error {
		data = append(data, b...)
		return nil
	})
	return data, err
}

// Merged returns a copy of the store with the active adapters of a view merged into its
// values, for the same model function: see [PeftModel.Merge]. The wrapped store stays as
// it was. Weights held in few bits are decoded in the copy.
func (w *WrappedModel) Merged(pm *PeftModel) (*model.Store, MergeReport, error) {
	store, report, err := w.merged(pm)
	if err != nil {
		return nil, MergeReport{}, fmt.Errorf("peft: merge: %w", err)
	}
	return store, report, nil
}

func (w *WrappedModel) merged(pm *PeftModel) (store *model.Store, report MergeReport, err error) {
	if pm == nil || pm.Base() != site.Base(w) {
		return nil, report, errors.New("the view is one of another base")
	}
	m, err := pm.newMerger()
	if err != nil {
		return nil, report, err
	}
	err = graphx.Try(func() error {
		if store, err = w.plain.Clone(); err != nil {
			return err
		}
		for _, p := range w.parameters {
			v := w.plain.GetVariable(site.VariablePath(p.Name))
			data, changed, err := w.edited(p, exportDTypes[v.DType()], m.edit)
			if err != nil {
				return err
			}
			if _, quantised := w.quantised[p.Name]; !changed && !quantised {
				continue
			}
			t, err := tensors.FromRaw(w.backend, 0, v.Shape(), data)
			if err != nil {
				return err
			}
			if err := store.GetVariable(v.Path()).SetValue(t); err != nil {
				return err
			}
		}
		return m.missed()
	})
	return store, m.report, err
}
