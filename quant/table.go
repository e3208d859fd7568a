package quant

import (
	"cmp"
	"math"
	"slices"
	"sync"
)

// Type names a four-bit format.
type Type string

const (
	// NormalFloat has its 16 levels at quantiles of the normal distribution.
	NormalFloat Type = "nf4"
	// Float4 is a floating-point number of one sign, two exponent and one mantissa bits.
	Float4 Type = "fp4"
)

// levels4 are the values of the 16 codes, before division by the largest.
var levels4 = map[Type][16]float32{
	NormalFloat: {
		-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0,
		0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
	},
	Float4: {
		0, 0.0625 / 12, 8. / 12, 12. / 12, 4. / 12, 6. / 12, 2. / 12, 3. / 12,
		0, -0.0625 / 12, -8. / 12, -12. / 12, -4. / 12, -6. / 12, -2. / 12, -3. / 12,
	},
}

// code4 is a four-bit format: the code of a value is order[number of bounds below it].
type code4 struct {
	levels [16]float32
	bounds [16]float32 // the last one is infinite
	order  [16]uint8
	// below counts, for each of 1024 even pieces of [-1, 1], the bounds that lie safely
	// below it: at most one more lies below a value in the piece.
	below [pieces + 1]uint8
}

// pieces are narrower than the smallest distance between two bounds, 0.0026.
const pieces = 1024

var codes4 = map[Type]*code4{NormalFloat: newCode4(NormalFloat), Float4: newCode4(Float4)}

func newCode4(t Type) *code4 {
	c := &code4{levels: levels4[t]}
	for i := range c.order {
		c.order[i] = uint8(i)
	}
	slices.SortStableFunc(c.order[:], func(a, b uint8) int { return cmp.Compare(c.levels[a], c.levels[b]) })
	for i := range 15 {
		c.bounds[i] = (c.levels[c.order[i]] + c.levels[c.order[i+1]]) / 2
	}
	c.bounds[15] = float32(math.Inf(1))
	const rounding = 1e-6 // of the sum in nearest
	for i := range c.below {
		for v := float32(i)*(2./pieces) - 1 - rounding; c.bounds[c.below[i]] < v; {
			c.below[i]++
		}
	}
	return c
}

// nearest returns the code of a value in [-1, 1]. It has no branch that weights could
// mispredict.
func (c *code4) nearest(v float32) uint8 {
	n := c.below[int((v+1)*(pieces/2))]
	if v > c.bounds[n&15] {
		n++
	}
	return c.order[n&15]
}

// dynamicMap returns the 256 values of bitsandbytes' signed dynamic 8-bit data type
// (create_dynamic_map; Dettmers 2015, arXiv:1511.04561), ascending: seven exponents of
// ten, each with twice the fraction steps of the one before.
var dynamicMap = sync.OnceValue(func() *[256]float32 {
	values := make([]float32, 0, 256)
	scale := [7]float32{1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1}
	for e, s := range scale {
		bounds := linspace(0.1, 1, 1<<e+1)
		for i := range len(bounds) - 1 {
			mean := (bounds[i] + bounds[i+1]) / 2
			values = append(values, s*mean, -s*mean)
		}
	}
	values = append(values, 0, 1)
	slices.Sort(values)
	return (*[256]float32)(values)
})

// linspace divides [from, to] by n points, in float32 from both ends as torch does.
func linspace(from, to float32, n int) []float32 {
	out := make([]float32, n)
	step := (to - from) / float32(n-1)
	for i := range out {
		if i < n/2 {
			out[i] = float32(float64(from) + float64(step)*float64(i)) // a fused multiply and add
		} else {
			out[i] = float32(float64(to) - float64(step)*float64(n-i-1))
		}
	}
	return out
}

// searchTable gives the code of the dynamic map nearest to each of 65,536 evenly spaced
// values in [-1, 1]: bitsandbytes on a CPU looks codes up in such a table.
var searchTable = sync.OnceValue(func() *[1 << 16]uint8 {
	var table [1 << 16]uint8
	values := dynamicMap()
	k := 0
	for i := range table {
		v := float64(i)/32767.5 - 1
		for k < 255 && v > (float64(values[k])+float64(values[k+1]))/2 {
			k++
		}
		table[i] = uint8(k)
	}
	return &table
})
