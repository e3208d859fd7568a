package quant

import "math/bits"

// lanes is the width of the vectors that torch sums float32 with on x86 CPUs.
const lanes = 8

// mean is torch's mean of a float32 vector on one CPU thread, bit by bit: sums of many
// values depend on their order, and double quantisation stores this one.
//
// torch adds in four interleaved rows of vectors, each through four levels of partial
// sums (aten/src/ATen/native/cpu/SumKernel.cpp).
func mean(values []float32) float32 {
	width := lanes
	if len(values) < lanes {
		width = 1
	}
	vectors := len(values) / width
	sum := rowSum(values, width, vectors)
	var total float32
	for _, v := range values[vectors*width:] {
		total += v
	}
	for _, v := range sum[:width] {
		total += v
	}
	return total / float32(len(values))
}

type vector [lanes]float32

func (v *vector) add(w []float32) {
	for i, x := range w {
		v[i] += x
	}
}

const rows = 4

// rowSum adds vectors of the given width.
func rowSum(values []float32, width, vectors int) vector {
	n := vectors / rows
	sums := cascade(values, width, n)
	for i := n * rows; i < vectors; i++ {
		sums[0].add(values[i*width : (i+1)*width])
	}
	for _, s := range sums[1:] {
		sums[0].add(s[:width])
	}
	return sums[0]
}

// cascade adds n groups of four vectors, so that rounding errors grow with the logarithm of n.
func cascade(values []float32, width, n int) [rows]vector {
	const levels = 4
	power := max(4, ceilLog2(n)/levels)
	step := 1 << power
	var acc [levels][rows]vector
	addGroup := func(i int) {
		for k := range rows {
			at := (i*rows + k) * width
			acc[0][k].add(values[at : at+width])
		}
	}
	i := 0
	for i+step <= n {
		for range step {
			addGroup(i)
			i++
		}
		for level := 1; level < levels; level++ {
			for k := range rows {
				acc[level][k].add(acc[level-1][k][:width])
				acc[level-1][k] = vector{}
			}
			if i&((step-1)<<(level*power)) != 0 {
				break
			}
		}
	}
	for ; i < n; i++ {
		addGroup(i)
	}
	for level := 1; level < levels; level++ {
		for k := range rows {
			acc[0][k].add(acc[level][k][:width])
		}
	}
	return acc[0]
}

func ceilLog2(n int) int {
	if n <= 1 {
		return 0
	}
	return bits.Len(uint(n - 1))
}
