package lora

import (
	"fmt"
	"math"
	"sort"

	"github.com/gomlx/compute/dtypes/float16"
	"gonum.org/v1/gonum/mat"
)

// LoftqConfig are the settings of [InitLoftq].
type LoftqConfig struct {
	// Bits of the quantisation: 4 (NF4) or 8. 0: 4.
	Bits int `json:"loftq_bits"`
	// Iterations is how often quantisation and decomposition take turns. 0: 1.
	Iterations int `json:"loftq_iter"`
}

func (c LoftqConfig) withDefaults() LoftqConfig {
	if c.Bits == 0 {
		c.Bits = 4
	}
	if c.Iterations == 0 {
		c.Iterations = 1
	}
	return c
}

func (c LoftqConfig) check() error {
	c = c.withDefaults()
	switch {
	case c.Bits != 4 && c.Bits != 8:
		return fmt.Errorf("loftq_bits is %d, want 4 (nf4) or 8", c.Bits)
	case c.Iterations < 0:
		return fmt.Errorf("loftq_iter is %d, want more than 0", c.Iterations)
	}
	return nil
}

// loftqStart is that of LoftQ (Li et al. 2023, arXiv:2310.08659): the best approximation of
// rank r to what quantisation loses. From R = W it repeats
//
//	Q = dequantised(quantised(R)), L = rank r part of W - Q, R = W - L
//
// and divides L, by its singular values, between A and B. The weight W - s·B·A is close
// to one of 4 bits from then on: what is left of its rounding is beyond rank r.
//
// peft leaves out the division by the scaling s, so that its model starts at Q + s·L: away
// from W unless lora_alpha is r. Here s·B·A is L for any s.
func (l layer) loftqStart(W *mat.Dense, c LoftqConfig) (start, error) {
	c = c.withDefaults()
	rows, columns := W.Dims()
	R := W
	for i := range c.Iterations {
		Q := mat.NewDense(rows, columns, fakeQuantised(R.RawMatrix().Data, columns, c.Bits))
		var loss mat.Dense
		loss.Sub(W, Q)
		svd, err := topSingular(&loss, l.r, exact, nil)
		if err != nil {
			return start{}, err
		}
		if i == c.Iterations-1 {
			return balanced(svd, l.scaling), nil
		}
		var L, next mat.Dense
		L.Product(svd.U, mat.NewDiagDense(len(svd.S), svd.S), svd.V.T())
		next.Sub(W, &L)
		R = &next
	}
	panic("unreachable")
}

// fakeQuantised rounds a weight [rows, columns] to values that 4 or 8 bits can tell apart, in
// float32 as bitsandbytes does: NF4 in blocks of 64 successive values, 8 bits by row of
// values that are rounded to float16 before, each relative to its largest magnitude.
func fakeQuantised(values []float64, columns, bits int) []float64 {
	out := make([]float64, len(values))
	block := columns
	if bits == 4 {
		block = 64
	}
	for from := 0; from < len(values); from += block {
		part := make([]float32, min(block, len(values)-from))
		var largest float32
		for i := range part {
			part[i] = float32(values[from+i])
			if bits == 8 {
				part[i] = float16.FromFloat32(part[i]).Float32()
			}
			largest = max(largest, part[i], -part[i])
		}
		for i, v := range part {
			if largest == 0 {
				continue
			}
			if bits == 4 {
				out[from+i] = float64(nearestNF4(v*(1/largest)) * largest)
			} else {
				code := math.RoundToEven(float64(v * (127 / largest)))
				out[from+i] = float64(float32(code) * (largest * (1.0 / 127)))
			}
		}
	}
	return out
}

// nf4 are the values of the 4-bit type NormalFloat: quantiles of N(0, 1), scaled to [-1, 1]
// (Dettmers et al. 2023, arXiv:2305.14314, appendix E).
var nf4 = [16]float32{
	-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
	-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0,
	0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
	0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
}

// nearestNF4 rounds x in [-1, 1].
func nearestNF4(x float32) float32 {
	i := sort.Search(len(nf4)-1, func(i int) bool { return x <= (nf4[i]+nf4[i+1])/2 })
	return nf4[i]
}
