package peft

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/tensors"
)

// initial makes the values that an adapter starts with: each tensor from a generator
// seeded by (seed, name), so that neither order nor other adapters change it. read, if
// not nil, fills a tensor from elsewhere and reports whether it did.
func (na *namedAdapter) initial(on compute.Backend, seed uint64, read func(p Param, values []float32) (bool, error)) (values, constants []*tensors.Tensor, err error) {
	params := slices.DeleteFunc(slices.Clone(na.adapter.Params()), func(p Param) bool { return p.Computed })
	in := initialiser{seed: seed, read: read, params: params, kept: map[string][]float32{}}
	in.deriving = slices.ContainsFunc(params, func(p Param) bool { return p.Derive != nil })
	if in.deriving {
		// Values that others derive from are needed on the host at once, wherever they lie.
		for _, derived := range []bool{false, true} {
			for _, p := range params {
				if (p.Derive != nil) != derived {
					continue
				}
				values := make([]float32, p.Size())
				if err := in.set(p, values); err != nil {
					return nil, nil, err
				}
				in.kept[p.Name] = values
			}
		}
	}
	if values, err = na.layout.build(on, in.fill); err != nil {
		return nil, nil, err
	}
	if na.constantLayout != nil {
		constants, err = na.constantLayout.build(on, in.fill)
	}
	return values, constants, err
}

type initialiser struct {
	seed     uint64
	read     func(p Param, values []float32) (bool, error)
	params   []Param
	deriving bool
	kept     map[string][]float32
}

func (in *initialiser) fill(p Param, values []float32) error {
	if in.deriving {
		copy(values, in.kept[p.Name])
		delete(in.kept, p.Name)
		return nil
	}
	return in.set(p, values)
}

// set fills values of p's Shape.
func (in *initialiser) set(p Param, values []float32) error {
	if p.FileShape == nil {
		return in.setFile(p, values)
	}
	file := make([]float32, p.fileSize())
	if err := in.setFile(p, file); err != nil {
		return err
	}
	p.spread(file, values)
	return nil
}

// setFile fills values of the shape that p has in the file.
func (in *initialiser) setFile(p Param, values []float32) error {
	seed := in.seed
	if in.read != nil {
		if done, err := in.read(p, values); done || err != nil {
			return err
		}
		seed = 0
	}
	var err error
	switch {
	case p.Derive != nil:
		err = p.Derive(func(name string) []float32 {
			of, ok := in.kept[name]
			if !ok {
				panic(fmt.Errorf("peft: %q derives from %q, which is not made before it", p.Name, name))
			}
			if i := slices.IndexFunc(in.params, func(q Param) bool { return q.Name == name }); i >= 0 {
				of = in.params[i].crop(of)
			}
			return of
		}, values)
	case p.Init != nil:
		h := sha256.Sum256(binary.LittleEndian.AppendUint64([]byte(p.Name+"\x00"), seed))
		err = p.Init(rand.New(rand.NewPCG(binary.LittleEndian.Uint64(h[:]), binary.LittleEndian.Uint64(h[8:]))), values)
	}
	if err != nil {
		return fmt.Errorf("peft: initial values of %q: %w", p.Name, err)
	}
	return nil
}
