package models

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/site"
)

// run is one call of Generate: its rows, and its own cache on the device.
type run struct {
	*programs
	view      site.View
	structure string
	settings  *settings
	rows      []*row
	batch     int // rows of the programs, some of which may be idle
	samplers  []*sampler

	arguments []*tensors.Tensor // the view's, as they were at the start; not ours to free
	starts    *tensors.Tensor
	tasks     *tensors.Tensor   // [batch] int32, or nil
	next      *tensors.Tensor   // [batch] int32
	logits    *tensors.Tensor   // [batch, vocabulary] float32
	cache     []*tensors.Tensor // keys, then values
	virtual   int               // tokens before those of the rows, see site.Prefix
	slots     int               // of the cache
	used      int               // slots that are written
	step      int
	long      bool // the cache is of rows beyond shortLength
}

func (r *run) all(ctx context.Context) error {
	defer r.free()
	if err := r.upload(r.arguments); err != nil {
		return err
	}
	if err := r.read(ctx); err != nil {
		return err
	}
	for {
		if err := r.accept(); err != nil {
			return err
		}
		if allDone(r.rows) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		r.step++
		if err := r.decode(ctx); err != nil {
			return fmt.Errorf("token %d: %w", r.step, err)
		}
	}
}

// read runs all tokens so far, the prompts at first, in chunks if there are many, and
// makes room in the cache for what follows.
func (r *run) read(ctx context.Context) error {
	ahead := 0
	for _, row := range r.rows {
		ahead = max(ahead, row.room-len(row.out.IDs))
	}
	longest := r.longest()
	r.long = r.tooLong(r.virtual + longest)
	length := promptBucket(longest)
	slots := slotBucket(r.virtual + length + min(ahead, slotsAhead))
	ids, starts := r.padded(length)
	r.starts = tensors.FromFlatDataAndDimensions(starts, r.batch)
	if r.settings.Tasks != nil {
		tasks := slices.Repeat(r.settings.Tasks[:1], r.batch) // idle rows do what the first does
		copy(tasks, r.settings.Tasks)
		r.tasks = tensors.FromFlatDataAndDimensions(tasks, r.batch)
	}
	chunk := min(length, chunkLength)
	for from := 0; from < length; from += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		if from == chunk {
			if err := r.grow(slots); err != nil {
				return err
			}
		}
		part := make([]int32, 0, r.batch*chunk)
		for i := range r.batch {
			part = append(part, ids[i*length+from:][:chunk]...)
		}
		if err := r.pass(tensors.FromFlatDataAndDimensions(part, r.batch, chunk), chunk); err != nil {
			return fmt.Errorf("prompt: %w", err)
		}
	}
	if ahead > 1 && r.slots < slots { // the only token that is wanted is not written
		return r.grow(slots)
	}
	return nil
}

// longest is the number of tokens so far of the longest row.
func (r *run) longest() int {
	n := 0
	for _, row := range r.rows {
		n = max(n, len(row.prompt)+len(row.out.IDs))
	}
	return n
}

// tooLong reports whether n tokens need a cache of the long kind, see [site.Cache].
func (r *run) tooLong(n int) bool {
	m, ok := r.lm.(*Model)
	if !ok {
		return false
	}
	s, ok := m.network.(lengthDependent)
	return ok && s.shortLength() > 0 && n > s.shortLength()
}

// lengthDependent is implemented by a network whose keys for rows of more than
// shortLength tokens, if it is not 0, are others than for shorter ones.
type lengthDependent interface{ shortLength() int }

// padded returns the tokens so far padded on the left, [batch, length], and where they start.
func (r *run) padded(length int) (ids, starts []int32) {
	ids, starts = make([]int32, r.batch*length), make([]int32, r.batch)
	for i := range r.batch {
		row := r.rows[0] // idle rows do what the first does
		if i < len(r.rows) {
			row = r.rows[i]
		}
		n := len(row.prompt) + len(row.out.IDs)
		starts[i] = int32(length - n)
		copy(ids[(i+1)*length-n:], row.prompt)
		copy(ids[(i+1)*length-len(row.out.IDs):], row.out.IDs)
	}
	return ids, starts
}

// accept reads or draws the next token of each row.
func (r *run) accept() error {
	next, err := tensors.CopyFlatData[int32](r.next)
	if err != nil {
		return err
	}
	for i, row := range r.rows {
		if next[i] < 0 && !row.done() {
			return fmt.Errorf("row %d, token %d: the model's logits are not finite", row.number, r.step+1)
		}
	}
	if !r.settings.greedy() {
		if err := r.sample(next); err != nil {
			return err
		}
		free(r.next)
		r.next = tensors.FromFlatDataAndDimensions(next, r.batch)
	}
	for i, row := range r.rows {
		if row.done() {
			continue
		}
		if err := row.accept(r.settings, next[i]); err != nil {
			return fmt.Errorf("row %d: %w", row.number, err)
		}
	}
	return nil
}

// sample picks the next id of each row that is not done, side by side: with a large
// vocabulary it takes milliseconds a row.
func (r *run) sample(next []int32) error {
	return tensors.ConstFlatData(r.logits, func(logits []float32) {
		workers := min(runtime.GOMAXPROCS(0), len(r.rows))
		for len(r.samplers) < workers {
			r.samplers = append(r.samplers, r.settings.sampler())
		}
		var wait sync.WaitGroup
		for w := range workers {
			wait.Go(func() {
				for i := w; i < len(r.rows); i += workers {
					if row := r.rows[i]; !row.done() {
						next[i] = r.pick(r.samplers[w], row, logits[i*r.settings.vocab:(i+1)*r.settings.vocab])
					}
				}
			})
		}
		wait.Wait()
	})
}

func (r *run) pick(sampler *sampler, row *row, logits []float32) int32 {
	s := r.settings
	id := sampler.pick(logits, row.seen, uniform(s.Seed, uint64(row.number+s.RowOffset), uint64(r.step)))
	if s.LogProbs {
		row.out.LogProbs = append(row.out.LogProbs, logProb(logits, id))
	}
	return id
}

// decode feeds the newest tokens, which are on the device already when greedy. Where
// they make the rows too long for the cache, all are read again.
func (r *run) decode(ctx context.Context) error {
	if !r.long && r.tooLong(r.virtual+r.longest()) {
		r.free()
		r.starts, r.tasks, r.next, r.logits, r.cache, r.slots, r.used = nil, nil, nil, nil, nil, 0, 0
		return r.read(ctx)
	}
	if r.used == r.slots {
		if err := r.grow(slotBucket(r.slots + 1)); err != nil {
			return err
		}
	}
	ids := r.next
	r.next = nil
	return r.pass(ids, 1)
}

// pass runs the next length tokens of every row and frees ids.
func (r *run) pass(ids *tensors.Tensor, length int) error {
	defer free(ids)
	key := programKey{structure: r.structure, batch: r.batch, length: length, slots: r.slots, long: r.long, tasks: r.tasks != nil}
	inputs := append(shapesOf(r.arguments), ids.Shape(), r.starts.Shape())
	if key.tasks {
		inputs = append(inputs, r.tasks.Shape())
	}
	if r.slots > 0 {
		inputs = append(append(inputs, shapes.Make(dtypes.Int32)), shapesOf(r.cache)...)
	}
	exec, err := r.get(key, inputs, r.passGraph(r.view, len(r.arguments), key))
	if err != nil {
		return err
	}
	in := make([]any, 0, len(inputs))
	for _, t := range r.arguments {
		in = append(in, t)
	}
	in = append(in, ids, r.starts)
	if key.tasks {
		in = append(in, r.tasks)
	}
	if r.slots > 0 {
		in = append(in, int32(r.used))
	}
	out, err := r.execute(exec, in)
	if err != nil {
		return err
	}
	free(r.next, r.logits)
	r.next, r.logits, r.cache = out[0], out[1], out[2:]
	if r.slots == 0 {
		length += r.virtual
	}
	r.used += length
	r.slots = max(r.slots, length)
	return nil
}

// grow makes the cache longer.
func (r *run) grow(slots int) error {
	key := programKey{batch: r.batch, slots: r.slots, toSlots: slots}
	exec, err := r.get(key, shapesOf(r.cache), growGraph(key))
	if err != nil {
		return err
	}
	out, err := r.execute(exec, nil)
	if err != nil {
		return fmt.Errorf("cache of %d tokens: %w", slots, err)
	}
	r.cache, r.slots = out, slots
	return nil
}

// execute runs a program, whose last inputs are the cache; the buffers of the old
// cache are the program's to reuse.
func (r *run) execute(exec *model.Exec, in []any) (out []*tensors.Tensor, err error) {
	err = graphx.Try(func() (err error) {
		for _, t := range r.cache {
			donated, err := graph.DonateTensorBuffer(t, r.lm.Backend(), 0)
			if err != nil {
				return err
			}
			in = append(in, donated)
		}
		r.cache = nil
		out, err = exec.Exec(in...)
		return err
	})
	return out, err
}

// free releases what the run has on the device, which Go's collector does not see.
func (r *run) free() {
	free(r.starts, r.tasks, r.next, r.logits)
	free(r.cache...)
}

func free(all ...*tensors.Tensor) {
	for _, t := range all {
		if t != nil {
			_ = t.FinalizeAll() // it is out of use either way
		}
	}
}

func shapesOf(all []*tensors.Tensor) []shapes.Shape {
	out := make([]shapes.Shape, len(all))
	for i, t := range all {
		out[i] = t.Shape()
	}
	return out
}
