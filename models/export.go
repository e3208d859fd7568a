package models

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/internal/atomicfile"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/site"
)

// Export writes the model to the folder dir as a Hugging Face checkpoint: the
// folder is complete or not there. A model that was in dir is replaced, but for
// README.md, LICENSE and .gitattributes, which stay; any other file or folder in
// dir is an error.
//
// The tensors are read again from where the model was loaded, one at a time; those
// of a model made in memory come from the device. edit, which may be nil, sees
// each as row-major float32 values, may change them and says whether it did. An
// unchanged tensor is copied bit for bit in its stored dtype, a changed one is
// rounded once to that dtype. A tensor that several modules share is one tensor
// here too, and stays shared: changing it changes all of them.
//
// config.json, generation_config.json and the tokenizer's files are copied. Weights
// above 5 GB are written in shards.
func (m *Model) Export(ctx context.Context, dir string, edit func(p site.Parameter, values []float32) (changed bool, err error)) error {
	if m.original != nil {
		return fmt.Errorf("models: export to %q: the model repeats layers of %q, whose checkpoint has each of them once: export that one", dir, m.nameOrPath)
	}
	return m.core.export(ctx, dir, m.Tokenizer, edit)
}

// exported is the model that is written: m itself, or a variant of it.
type exported struct {
	network network
	json    []byte
	// from returns m's parameter that one of network has its values from; nil: the same.
	from func(name string) string
}

func (m *core) export(ctx context.Context, dir string, tok *tokenizer.Tokenizer, edit func(site.Parameter, []float32) (bool, error)) error {
	json, err := withoutQuantization(m.config.JSON)
	if err != nil {
		return err
	}
	return m.exportAs(ctx, dir, tok, exported{m.network, json, nil}, edit)
}

func (m *core) exportAs(ctx context.Context, dir string, tok *tokenizer.Tokenizer, as exported, edit func(site.Parameter, []float32) (bool, error)) error {
	if err := m.exportTo(ctx, dir, tok, as, edit); err != nil {
		return fmt.Errorf("models: export to %q: %w", dir, err)
	}
	return nil
}

func (m *core) exportTo(ctx context.Context, dir string, tok *tokenizer.Tokenizer, as exported, edit func(site.Parameter, []float32) (bool, error)) error {
	if err := m.mayReplace(dir); err != nil {
		return err
	}
	src, err := m.exportSource()
	if err != nil {
		return err
	}
	defer src.Close()
	parameters := as.network.Parameters()
	list := make([]safetensors.Tensor, 0, len(parameters))
	for _, p := range parameters {
		from := p.Name
		if as.from != nil {
			from = as.from(p.Name)
		}
		t, err := copiedTensor(ctx, src, from, as.network, p, edit)
		if err != nil {
			return err
		}
		list = append(list, t)
	}
	return atomicfile.WriteDir(dir, func(part string) error {
		if err := keepFiles(dir, part); err != nil {
			return err
		}
		if err := m.writeConfigs(part, as.json, tok); err != nil {
			return err
		}
		return writeWeights(part, list)
	})
}

// mayReplace refuses a folder that a model must not be written to.
func (m *core) mayReplace(dir string) error {
	if m.folder.holds(dir) {
		return errors.New("the model was loaded from this folder: wanted another one")
	}
	return holdsOnlyModel(dir)
}

// exportSource is where the tensors of an export come from.
func (m *core) exportSource() (source, error) {
	if m.folder != nil {
		return m.tensors()
	}
	if len(m.quantised) > 0 {
		return dequantisedSource{storeSource{m}, m}, nil
	}
	return storeSource{m}, nil
}

// copiedTensor is parameter p of n, to be read from a source and edited when it is written.
func copiedTensor(ctx context.Context, src source, from string, n network, p site.Parameter, edit func(site.Parameter, []float32) (bool, error)) (safetensors.Tensor, error) {
	info, ok := src.Info(from)
	if !ok {
		return safetensors.Tensor{}, fmt.Errorf("parameter %q is no longer in the checkpoint", from)
	}
	return safetensors.Tensor{Name: storedName(n, p.Name), DType: info.DType, Shape: info.Shape,
		Data: func(w io.Writer) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return writeTensor(w, src, from, p, info, edit)
		}}, nil
}

// writeWeights writes a model's tensors into a new folder, and compares what is there then.
func writeWeights(dir string, list []safetensors.Tensor) error {
	infos := make([]safetensors.TensorInfo, 0, len(list))
	for _, t := range list {
		info, err := t.Info()
		if err != nil {
			return err
		}
		infos = append(infos, info)
	}
	if err := safetensors.WriteSharded(dir, map[string]string{"format": "pt"}, list, safetensors.DefaultShardSize); err != nil {
		return err
	}
	return safetensors.Verify(dir, infos)
}

// keptFiles are what people and the hub add to a model folder, replacedFiles what a
// model folder has besides them and the weights.
var (
	keptFiles     = []string{"README.md", "LICENSE", ".gitattributes"}
	replacedFiles = []string{configFile, generationFile, "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
		"added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja", "chat_template.json"}
)

// holdsOnlyModel reports what in dir is no part of a model folder: replacing the
// folder would delete it, and an output folder of a training has checkpoints.
func holdsOnlyModel(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // missing, or a file: whoever writes dir says so
	}
	for _, e := range entries {
		known := slices.Contains(keptFiles, e.Name()) || slices.Contains(replacedFiles, e.Name()) || safetensors.IsModelFile(e.Name())
		if !known || e.IsDir() {
			return fmt.Errorf("the folder has %q, which is no part of a model and would be lost: wanted a new or empty folder", e.Name())
		}
	}
	return nil
}

// keepFiles copies what stays of the old folder into the new one.
func keepFiles(old, dir string) error {
	for _, name := range keptFiles {
		data, err := os.ReadFile(filepath.Join(old, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeTensor writes one tensor of the source, changed or as it is, as parameter p.
func writeTensor(w io.Writer, src source, from string, p site.Parameter, info safetensors.TensorInfo, edit func(site.Parameter, []float32) (bool, error)) error {
	data, err := src.Bytes(from)
	if err != nil {
		return err
	}
	defer src.Release(from)
	if edit != nil {
		values := make([]float32, p.Size())
		if err := safetensors.DecodeFloat32s(values, data, info.DType); err != nil {
			return err
		}
		changed, err := edit(p, values)
		if err != nil {
			return err
		}
		if changed {
			data = make([]byte, len(data))
			if err := safetensors.EncodeFloat32s(data, values, info.DType); err != nil {
				return err
			}
			if err := safetensors.CheckRange(values, data, info.DType); err != nil {
				return fmt.Errorf("parameter %q: %w", p.Name, err)
			}
		}
	}
	_, err = w.Write(data)
	return err
}

// writeConfigs writes what is in a model folder besides the weights.
func (m *core) writeConfigs(dir string, json []byte, tok *tokenizer.Tokenizer) error {
	if err := os.WriteFile(filepath.Join(dir, configFile), json, 0o644); err != nil {
		return err
	}
	if m.folder != nil {
		data, err := m.folder.read(generationFile)
		switch {
		case err == nil:
			if err := os.WriteFile(filepath.Join(dir, generationFile), data, 0o644); err != nil {
				return err
			}
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	if tok == nil {
		return nil
	}
	return tok.SaveFiles(dir)
}

// storeSource reads a model's parameters back from the device.
type storeSource struct{ m *core }

func (s storeSource) Names() []string {
	var names []string
	for _, p := range s.m.Parameters() {
		names = append(names, p.Name)
	}
	return names
}

func (s storeSource) Info(name string) (safetensors.TensorInfo, bool) {
	v := s.m.store.GetVariable(site.VariablePath(name))
	if v == nil {
		return safetensors.TensorInfo{}, false
	}
	shape := v.Shape().Dimensions
	if q, ok := s.m.quantised[name]; ok {
		if shape = slices.Clone(q.Shape()); q.flipped {
			slices.Reverse(shape)
		}
	}
	info, err := safetensors.Tensor{Name: name, DType: fileDType(s.m.dtype), Shape: shape}.Info()
	return info, err == nil
}

func (s storeSource) Bytes(name string) (data []byte, err error) {
	v := s.m.store.GetVariable(site.VariablePath(name))
	if v == nil {
		return nil, fmt.Errorf("no parameter %q", name)
	}
	return storeBytes(v)
}

// storeBytes copies a variable's value to the host.
func storeBytes(v *model.Variable) (data []byte, err error) {
	value, err := v.Value()
	if err != nil {
		return nil, err
	}
	err = value.ConstBytes(func(b []byte) { data = append(data, b...) })
	value.FinalizeLocal() // the device keeps its own
	return data, err
}

func (storeSource) Release(string) {}

func (storeSource) Close() error { return nil }
