package quant

import (
	"math"
	"runtime"
	"sync"
	"sync/atomic"
)

// smallest stands in for a zero absmax in divisions, as in bitsandbytes.
const smallest = 1e-38

// quantise4 writes the codes of values, two a byte, and the absmax of each block. The
// last block may be partial, and an odd number of values ends in an empty low half. It
// reports whether all values are finite; if not, the rest means nothing.
func (c *code4) quantise4(values []float32, block int, packed []byte, absmax []float32) bool {
	var broken atomic.Bool
	// Blocks have an even number of elements, so no byte belongs to two of them.
	inParallel(len(absmax), func(from, to int) {
		for b := from; b < to; b++ {
			part := values[b*block : min((b+1)*block, len(values))]
			largest := maxAbs(part)
			absmax[b] = largest
			if notFinite(largest) {
				broken.Store(true)
				return
			}
			if len(part) == block {
				c.pack(part, 1/max(largest, smallest), packed[b*block/2:])
			} else {
				absmax[b] = max(largest, smallest)
				c.packLast(part, absmax[b], packed[b*block/2:])
			}
		}
	})
	return !broken.Load()
}

// pack writes the codes of one full block.
func (c *code4) pack(part []float32, inverse float32, packed []byte) {
	packed = packed[:len(part)/2]
	for i := range packed {
		first, second := part[2*i], part[2*i+1]
		packed[i] = c.nearest(first*inverse)<<4 | c.nearest(second*inverse)
	}
}

// packLast writes the codes of a partial block, which bitsandbytes divides by absmax where
// full blocks are multiplied by its inverse: the roundings differ.
func (c *code4) packLast(part []float32, absmax float32, packed []byte) {
	for i := 0; i < len(part); i += 2 {
		packed[i/2] = c.nearest(part[i]/absmax) << 4
		if i+1 < len(part) {
			packed[i/2] |= c.nearest(part[i+1] / absmax)
		} else {
			packed[i/2] |= c.nearest(0)
		}
	}
}

// dequantise4 is the inverse: level times absmax in float32.
func (c *code4) dequantise4(packed []byte, absmax []float32, block int, values []float32) {
	inParallel(len(absmax), func(from, to int) {
		for b := from; b < to; b++ {
			part, bytes := values[b*block:min((b+1)*block, len(values))], packed[b*block/2:]
			scale := absmax[b]
			for i := range len(part) / 2 {
				part[2*i], part[2*i+1] = c.levels[bytes[i]>>4]*scale, c.levels[bytes[i]&15]*scale
			}
			if n := len(part); n%2 == 1 {
				part[n-1] = c.levels[bytes[n/2]>>4] * scale
			}
		}
	})
}

// maxAbs is the largest magnitude; NaN and infinity count as larger than any number.
func maxAbs(values []float32) float32 {
	var largest uint32
	for _, v := range values {
		// The order of positive floats is that of their bits.
		largest = max(largest, math.Float32bits(v)&^(1<<31))
	}
	return math.Float32frombits(largest)
}

// inParallel divides n pieces of work among the cores.
func inParallel(n int, work func(from, to int)) {
	workers := min(runtime.GOMAXPROCS(0), max(1, n/64))
	var wait sync.WaitGroup
	for w := range workers {
		wait.Go(func() { work(w*n/workers, (w+1)*n/workers) })
	}
	wait.Wait()
}

// nestedBlock is the number of absmax values that share a nested absmax.
const nestedBlock = 256

// quantise8 writes the dynamic 8-bit code of each value, and the absmax of each block.
func quantise8(values []float32, codes []byte, absmax []float32) {
	table := searchTable()
	inParallel(len(absmax), func(from, to int) {
		for b := from; b < to; b++ {
			start, end := b*nestedBlock, min((b+1)*nestedBlock, len(values))
			absmax[b] = maxAbs(values[start:end])
			inverse := 1 / absmax[b]
			for i := start; i < end; i++ {
				codes[i] = table[tableIndex(values[i]*inverse)]
			}
		}
	})
}

// tableIndex is the place of a value of [-1, 1] in the search table; NaN, which is 0/0,
// comes to lie at its start.
func tableIndex(v float32) int {
	at := float32(float32(v+1)*32767.5) + 0.5
	switch {
	case !(at > 0):
		return 0
	case at >= 1<<16:
		return 1<<16 - 1
	}
	return int(at)
}

// dequantise8 is the inverse.
func dequantise8(codes []byte, absmax, code []float32, block int, values []float32) {
	for i, c := range codes {
		values[i] = code[c] * absmax[i/block]
	}
}
