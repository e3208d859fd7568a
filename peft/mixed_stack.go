package peft

import (
	"slices"
	"sync"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/tensors"
)

// stackCache keeps, for each structure, the last stack of values that was made: a server
// that answers batch after batch with the same adapters makes it once.
type stackCache struct {
	mu      sync.Mutex
	entries map[string]stack
}

type stack struct {
	slots int
	// of are the tensors that were stacked, by adapter.
	of      [][]*tensors.Tensor
	stacked []*tensors.Tensor
}

// get stacks the tensors of adapters of one structure along a new first axis, on the
// backend; what is behind the last of them up to slots is zero.
func (c *stackCache) get(on compute.Backend, structure string, slots int, lists [][]*tensors.Tensor) ([]*tensors.Tensor, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[structure]; ok && e.slots == slots && slices.EqualFunc(e.of, lists, slices.Equal[[]*tensors.Tensor]) {
		return e.stacked, nil
	}
	var stacked []*tensors.Tensor
	for i, t := range lists[0] {
		all := tensors.FromShape(shapes.Make(dtypes.Float32, append([]int{slots}, t.Shape().Dimensions...)...))
		var err error
		access := tensors.MutableFlatData(all, func(values []float32) {
			for slot, list := range lists {
				if err == nil {
					err = copyFloats(list[i], values[slot*t.Size():(slot+1)*t.Size()])
				}
			}
		})
		if access != nil {
			return nil, access
		}
		if err == nil {
			err = all.ToDevice(on, 0)
		}
		if err != nil {
			return nil, err
		}
		stacked = append(stacked, all)
	}
	if c.entries == nil {
		c.entries = map[string]stack{}
	}
	c.entries[structure] = stack{slots, lists, stacked}
	return stacked, nil
}

// clear forgets all stacks.
func (c *stackCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
}
