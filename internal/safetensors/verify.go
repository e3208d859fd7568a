package safetensors

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Verify opens what was written at path, a file or a folder as for
// [OpenIndexed], and compares names, dtypes and shapes with want, in any
// order. The error lists every difference. Offsets and content are not
// compared.
func Verify(path string, want []TensorInfo) error {
	var got []TensorInfo
	if isDir(path) {
		c, err := OpenIndexed(path)
		if err != nil {
			return err
		}
		defer c.Close()
		got = infos(c.names, c.Info)
	} else {
		f, err := Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		got = infos(f.header.names, f.Info)
	}
	if err := differences(got, want); err != nil {
		return fmt.Errorf("safetensors: verify %s: %w", path, err)
	}
	return nil
}

func infos(names []string, info func(string) (TensorInfo, bool)) []TensorInfo {
	var list []TensorInfo
	for _, name := range names {
		t, _ := info(name)
		list = append(list, t)
	}
	return list
}

func differences(got, want []TensorInfo) error {
	var errs []error
	found := map[string]TensorInfo{}
	for _, t := range got {
		found[t.Name] = t
	}
	wanted := map[string]bool{}
	sorted := slices.Clone(want)
	slices.SortFunc(sorted, func(a, b TensorInfo) int { return strings.Compare(a.Name, b.Name) })
	for _, w := range sorted {
		wanted[w.Name] = true
		g, ok := found[w.Name]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("tensor %s is missing", quote(w.Name)))
		case g.DType != w.DType || !slices.Equal(g.Shape, w.Shape):
			errs = append(errs, fmt.Errorf("tensor %s: want %s%s, got %s%s", quote(w.Name), w.DType, shapeText(w.Shape), g.DType, shapeText(g.Shape)))
		}
	}
	for _, g := range got {
		if !wanted[g.Name] {
			errs = append(errs, fmt.Errorf("tensor %s is not wanted", quote(g.Name)))
		}
	}
	return errors.Join(errs...)
}
