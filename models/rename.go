package models

import (
	"fmt"

	"github.com/gopeft/gopeft/internal/safetensors"
)

// Renamer is implemented by an [Architecture] whose checkpoints are also found under
// other names than its own, for example without the prefix of the whole model.
type Renamer interface {
	// Rename returns the parameter that a checkpoint's tensor holds; name itself if it
	// is none or already called so. has tells which names the checkpoint has.
	Rename(name string, has func(name string) bool) string
}

// storer is implemented by a network whose checkpoints are written under other names
// than its own.
type storer interface{ stored(parameter string) string }

// storedName is the name under which a parameter of n is written.
func storedName(n network, parameter string) string {
	if s, ok := n.(storer); ok {
		return s.stored(parameter)
	}
	return parameter
}

// renamedSource is a checkpoint under an architecture's names.
type renamedSource struct {
	source
	names  []string
	stored map[string]string // ours to the file's, where they differ
}

// renamed applies the names of a network or encoder, if it has any, to src.
func renamed(n any, src source) (source, error) {
	r, ok := n.(Renamer)
	if !ok {
		return src, nil
	}
	has := func(name string) bool { _, ok := src.Info(name); return ok }
	out := &renamedSource{source: src, stored: map[string]string{}}
	taken := map[string]string{}
	for _, name := range src.Names() {
		ours := r.Rename(name, has)
		if other, twice := taken[ours]; twice {
			return nil, fmt.Errorf("the checkpoint's tensors %q and %q are both parameter %q", other, name, ours)
		}
		taken[ours] = name
		out.names = append(out.names, ours)
		if ours != name {
			out.stored[ours] = name
		}
	}
	if len(out.stored) == 0 {
		return src, nil
	}
	return out, nil
}

func (s *renamedSource) name(ours string) string {
	if name, ok := s.stored[ours]; ok {
		return name
	}
	return ours
}

func (s *renamedSource) Names() []string { return s.names }

func (s *renamedSource) Info(ours string) (safetensors.TensorInfo, bool) {
	name := s.name(ours)
	if name == ours && s.isStored(ours) {
		return safetensors.TensorInfo{}, false
	}
	return s.source.Info(name)
}

// isStored reports whether a name is the file's for a parameter of another name.
func (s *renamedSource) isStored(name string) bool {
	for _, stored := range s.stored {
		if stored == name {
			return true
		}
	}
	return false
}

func (s *renamedSource) Bytes(ours string) ([]byte, error) { return s.source.Bytes(s.name(ours)) }

func (s *renamedSource) Release(ours string) { s.source.Release(s.name(ours)) }
