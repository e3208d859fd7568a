package peft

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/gopeft/gopeft/internal/atomicfile"
	"github.com/gopeft/gopeft/internal/safetensors"
)

const cardFile = "README.md"

// SavePretrained writes the active adapters in peft's format: the one named
// [DefaultAdapter] into dir itself, others into dir/NAME, each as
// adapter_config.json and adapter_model.safetensors (float32), for some methods a second
// file of tensors (see [Param].Beside), and a README.md unless dir has one. Several are listed
// in adapters.json, which [LoadAdapters] reads; one that is saved alone ends such a list.
//
// All is written beside the target and read back before anything under dir
// changes. If dir is new or holds nothing but the files of this adapter it is then
// replaced in one step; else each file is, weights before configuration, and
// other files in dir stay. On error dir is as it was, unless one of these files could be
// replaced and a later one could not. A symbolic link to a folder stays one.
func (pm *PeftModel) SavePretrained(dir string) error {
	if err := pm.savePretrained(dir); err != nil {
		return fmt.Errorf("peft: save adapter to %q: %w", dir, err)
	}
	return nil
}

func (pm *PeftModel) savePretrained(dir string) error {
	if len(pm.active) == 0 {
		return errors.New("no adapter is active")
	}
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return errors.New("it is a file, want a folder")
	}
	ours, err := pm.onlyOurs(dir)
	if err != nil {
		return err
	}
	if ours {
		err := atomicfile.WriteDir(dir, func(part string) error { return pm.writeInto(part, dir) })
		if !errors.Is(err, atomicfile.ErrPrecious) { // the working folder cannot be replaced, only filled
			return err
		}
	}
	part, err := os.MkdirTemp(dir, ".adapter.part-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(part)
	if err := pm.writeInto(part, dir); err != nil {
		return err
	}
	return pm.moveInto(part, dir)
}

// folder is where an adapter goes below the folder of a model.
func folder(dir, adapter string) string {
	if adapter == DefaultAdapter {
		return dir
	}
	return filepath.Join(dir, adapter)
}

// onlyOurs reports whether dir is missing or holds nothing but files that saving
// replaces.
func (pm *PeftModel) onlyOurs(dir string) (bool, error) {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real // WalkDir does not look behind a link
	}
	replaced := map[string]bool{".": true, cardFile: true, indexFile: true}
	for _, name := range pm.active {
		at := folder(".", name)
		replaced[at] = true
		for _, file := range []string{configFile, weightsFile, besidesFile} {
			replaced[filepath.Join(at, file)] = true
		}
	}
	ours := true
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if !replaced[below] || d.Type()&fs.ModeSymlink != 0 {
			ours = false
			return filepath.SkipAll
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return ours, err
}

// writeInto writes the active adapters into a fresh folder that is to become dir.
func (pm *PeftModel) writeInto(part, dir string) error {
	var configs []Config
	for _, name := range pm.active {
		na, err := pm.get(name)
		if err != nil {
			return err
		}
		if err := na.write(folder(part, name)); err != nil {
			return fmt.Errorf("adapter %q: %w", name, err)
		}
		configs = append(configs, na.config)
	}
	index, err := pm.index()
	if err != nil {
		return err
	}
	if index != nil {
		if err := writeFile(filepath.Join(part, indexFile), index); err != nil {
			return err
		}
	}
	card, err := os.ReadFile(filepath.Join(dir, cardFile))
	if errors.Is(err, fs.ErrNotExist) {
		card, err = []byte(modelCard(configs[0])), nil
	}
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(part, cardFile), card)
}

// moveInto renames the written files into their places in dir.
func (pm *PeftModel) moveInto(part, dir string) error {
	var paths, stale []string
	for _, name := range pm.active {
		at := folder(".", name)
		if err := os.MkdirAll(filepath.Join(dir, at), 0o777); err != nil {
			return err
		}
		besides := filepath.Join(at, besidesFile)
		if _, err := os.Stat(filepath.Join(part, besides)); err == nil {
			paths = append(paths, besides)
		} else {
			stale = append(stale, besides) // of an adapter that was there before
		}
		paths = append(paths, filepath.Join(at, weightsFile), filepath.Join(at, configFile))
	}
	if len(pm.active) > 1 {
		paths = append(paths, indexFile)
	} else {
		stale = append(stale, indexFile) // it would pair this adapter with others that were saved before it
	}
	for _, path := range append(paths, cardFile) {
		if err := os.Rename(filepath.Join(part, path), filepath.Join(dir, path)); err != nil {
			return err
		}
	}
	for _, path := range stale {
		if err := os.Remove(filepath.Join(dir, path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// write writes the adapter's files into a folder and reads them back.
func (na namedAdapter) write(dir string) error {
	if err := Saveable(na.config); err != nil {
		return err
	}
	fileConfig, tensors, err := na.fileForm()
	if err != nil {
		return err
	}
	files := map[string][]safetensors.Tensor{}
	for _, t := range tensors {
		if err := checkFinite(t.Name, t.Values); err != nil {
			return err
		}
		data := make([]byte, 4*len(t.Values))
		if err := safetensors.EncodeFloat32s(data, t.Values, safetensors.F32); err != nil {
			return err
		}
		file := weightsFile
		if t.Beside {
			file = besidesFile
		}
		key := Param{Name: t.Name, Key: t.Key}.fileKey()
		files[file] = append(files[file], safetensors.Tensor{Name: key, DType: safetensors.F32, Shape: t.Shape, Bytes: data})
	}
	if len(files[weightsFile]) == 0 {
		return errors.New("it has no tensors")
	}
	config, err := EncodeConfig(fileConfig)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, configFile), config); err != nil {
		return err
	}
	for file, list := range files {
		if err := safetensors.Write(filepath.Join(dir, file), map[string]string{"format": "pt"}, list); err != nil {
			return err
		}
		if err := readBack(filepath.Join(dir, file), list); err != nil {
			return err
		}
	}
	got, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, config) {
		return fmt.Errorf("%s reads back differently", configFile)
	}
	return nil
}

// fileForm returns what an adapter's files hold.
func (na namedAdapter) fileForm() (Config, []FileTensor, error) {
	values, err := na.host()
	if err != nil {
		return nil, nil, err
	}
	config := na.config
	var list []FileTensor
	for i, part := range na.parts {
		if f, ok := part.(FileForm); ok {
			changed, tensors, err := f.FileForm(func(name string) []float32 { return values[name] })
			if err != nil {
				return nil, nil, err
			}
			if tensors != nil {
				list = append(list, tensors...)
				if i == 0 && changed != nil {
					config = changed.WithCommon(na.config.Common())
				}
				continue
			}
		}
		for _, p := range part.Params() {
			if p.Unsaved {
				continue
			}
			tensor := FileTensor{Name: p.Name, Key: p.Key, Shape: p.fileShape(), Values: p.crop(values[p.Name]), Beside: p.Beside}
			list = append(list, tensor)
			for _, twin := range p.Twins {
				tensor.Name, tensor.Key = twin, ""
				list = append(list, tensor)
			}
		}
	}
	return config, list, nil
}

// readBack compares what lies on the disk with what was meant to.
func readBack(path string, list []safetensors.Tensor) error {
	file, err := safetensors.Open(path)
	if err != nil {
		return fmt.Errorf("reading back: %w", err)
	}
	defer file.Close()
	if n := len(file.Names()); n != len(list) {
		return fmt.Errorf("reading back: %s has %d tensors, want %d", filepath.Base(path), n, len(list))
	}
	for _, want := range list {
		data, err := file.Bytes(want.Name)
		if err != nil {
			return fmt.Errorf("reading back: %w", err)
		}
		if info, _ := file.Info(want.Name); !slices.Equal(info.Shape, want.Shape) || info.DType != want.DType || !bytes.Equal(data, want.Bytes) {
			return fmt.Errorf("tensor %q reads back differently", want.Name)
		}
	}
	return nil
}

func writeFile(path string, data []byte) error {
	return atomicfile.WriteFile(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}
