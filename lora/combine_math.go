package lora

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"

	"gonum.org/v1/gonum/mat"

	"github.com/gopeft/gopeft/internal/linalg"
)

// combine makes A [rank, columns] and B [rows, rank] of one module; s·B·A with s = 1 is
// what the combination is.
func (c Combination) combine(path string, terms []term, rank int) (a, b []float32, err error) {
	switch {
	case c.Type == Cat:
		a, b = concatenate(terms, rank)
	case c.Type == SVD:
		a, b, err = nearest(terms, rank)
	case c.svd():
		a, b, err = c.combineProducts(path, terms, rank)
	default:
		a, b, err = c.combineFactors(path, terms, rank)
	}
	return a, b, err
}

// concatenate stacks w·s·A and B.
func concatenate(terms []term, rank int) (a, b []float32) {
	a, b = make([]float32, rank*terms[0].columns), make([]float32, terms[0].rows*rank)
	at := 0
	for _, t := range terms {
		for i, v := range t.a {
			a[at*t.columns+i] = float32(t.weight * t.scale * float64(v))
		}
		for row := range t.rows {
			copy(b[row*rank+at:], t.b[row*t.rank:(row+1)*t.rank])
		}
		at += t.rank
	}
	return a, b
}

// nearest is the best approximation of the sum, without forming it where ranks are small.
func nearest(terms []term, rank int) (a, b []float32, err error) {
	sum := 0
	for _, t := range terms {
		sum += t.rank
	}
	allA, allB := mat.NewDense(sum, terms[0].columns, nil), mat.NewDense(terms[0].rows, sum, nil)
	at := 0
	for _, t := range terms {
		for i, v := range t.a {
			allA.Set(at+i/t.columns, i%t.columns, t.weight*t.scale*float64(v))
		}
		for i, v := range t.b {
			allB.Set(i/t.rank, at+i%t.rank, float64(v))
		}
		at += t.rank
	}
	svd, err := linalg.OfProduct(allB, allA, min(rank, terms[0].rows, terms[0].columns))
	if err != nil {
		return nil, nil, err
	}
	a, b = factors(svd, rank)
	return a, b, nil
}

// factors returns A = Vᵀ and B = U·S, as peft divides an SVD.
func factors(svd linalg.SVD, rank int) (a, b []float32) {
	rows, k := svd.U.Dims()
	columns, _ := svd.V.Dims()
	a, b = make([]float32, rank*columns), make([]float32, rows*rank)
	for i := range k {
		for j := range columns {
			a[i*columns+j] = float32(svd.V.At(j, i))
		}
		for j := range rows {
			b[j*rank+i] = float32(svd.U.At(j, i) * svd.S[i])
		}
	}
	return a, b
}

// combineProducts combines s·B·A of the adapters.
func (c Combination) combineProducts(path string, terms []term, rank int) (a, b []float32, err error) {
	tensors, weights := make([][]float64, len(terms)), make([]float64, len(terms))
	for i, t := range terms {
		tensors[i], weights[i] = t.product(), t.weight
	}
	rows, columns := terms[0].rows, terms[0].columns
	merged := c.task(path, terms, tensors, weights)
	svd, err := linalg.Truncated(mat.NewDense(rows, columns, merged), min(rank, rows, columns))
	if err != nil {
		return nil, nil, err
	}
	a, b = factors(svd, rank)
	return a, b, nil
}

// combineFactors combines the As and the Bs. The sign of a weight is A's.
func (c Combination) combineFactors(path string, terms []term, rank int) (a, b []float32, err error) {
	var as, bs [][]float64
	var weightsA, weightsB []float64
	for _, t := range terms {
		if t.rank != terms[0].rank {
			return nil, nil, fmt.Errorf("%s needs equal ranks, but %q has rank %d and %q %d: use cat or svd", c.Type, terms[0].adapter, terms[0].rank, t.adapter, t.rank)
		}
		root := math.Sqrt(math.Abs(t.weight * t.scale))
		weightsA, weightsB = append(weightsA, math.Copysign(root, t.weight*t.scale)), append(weightsB, root)
		as, bs = append(as, wide(t.a)), append(bs, wide(t.b))
	}
	t := terms[0]
	a, b = make([]float32, rank*t.columns), make([]float32, t.rows*rank)
	for i, v := range c.task(path+"/A", terms, as, weightsA) {
		a[i] = float32(v)
	}
	for i, v := range c.task(path+"/B", terms, bs, weightsB) {
		b[i/t.rank*rank+i%t.rank] = float32(v)
	}
	return a, b, nil
}

func wide(values []float32) []float64 {
	out := make([]float64, len(values))
	for i, v := range values {
		out[i] = float64(v)
	}
	return out
}

// task combines tensors of one shape: prune, elect signs, add
// (peft's utils/merge_utils.py). tensors are changed.
func (c Combination) task(key string, terms []term, tensors [][]float64, weights []float64) []float64 {
	for i, t := range tensors {
		switch {
		case !c.prunes() || c.Density == 1:
		case c.Type == DareLinear || c.Type == DareLinearSVD || c.Type == DareTies || c.Type == DareTiesSVD:
			c.dropAtRandom(t, key+"/"+terms[i].adapter)
		default:
			keepLargest(t, c.Density)
		}
	}
	if c.Type == Ties || c.Type == TiesSVD || c.Type == DareTies || c.Type == DareTiesSVD {
		return elected(tensors, weights, c.MajoritySign)
	}
	sum := make([]float64, len(tensors[0]))
	for i, t := range tensors {
		for j, v := range t {
			sum[j] += weights[i] * v
		}
	}
	return sum
}

// keepLargest sets all but the largest values to zero.
func keepLargest(values []float64, density float64) {
	order := make([]int, len(values))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(math.Abs(values[j]), math.Abs(values[i])) })
	for _, i := range order[int(density*float64(len(values))):] {
		values[i] = 0
	}
}

// dropAtRandom keeps a value with probability Density and divides it by it.
func (c Combination) dropAtRandom(values []float64, key string) {
	h := sha256.Sum256(binary.LittleEndian.AppendUint64([]byte(key+"\x00"), c.Seed))
	random := rand.New(rand.NewPCG(binary.LittleEndian.Uint64(h[:]), binary.LittleEndian.Uint64(h[8:])))
	for i := range values {
		if random.Float64() < c.Density {
			values[i] /= c.Density
		} else {
			values[i] = 0
		}
	}
}

// elected adds up, at each place, what has the majority's sign, and divides by their number.
func elected(tensors [][]float64, weights []float64, by MajoritySign) []float64 {
	out := make([]float64, len(tensors[0]))
	sign := func(v float64) float64 {
		switch {
		case v > 0:
			return 1
		case v < 0:
			return -1
		}
		return 0
	}
	for j := range out {
		var votes, sum, count float64
		for _, t := range tensors {
			if by == SignFrequency {
				votes += sign(t[j])
			} else {
				votes += t[j]
			}
		}
		majority := 1.0
		if votes < 0 {
			majority = -1
		}
		for i, t := range tensors {
			if sign(t[j]) == majority {
				sum += weights[i] * t[j]
				count++
			}
		}
		out[j] = sum / max(count, 1)
	}
	return out
}

// product is s·B·A.
func (t term) product() []float64 {
	out := make([]float64, t.rows*t.columns)
	eachRow(t.rows, func(row int) { t.addRow(out[row*t.columns:(row+1)*t.columns], row, t.scale) })
	return out
}

// addRow adds a row of B·A times f, four rows of A at a time: one pass over sum for each
// costs most of the time.
func (t term) addRow(sum []float64, row int, f float64) {
	b, n, k := t.b[row*t.rank:(row+1)*t.rank], len(sum), 0
	at := func(k int) (float64, []float32) { return f * float64(b[k]), t.a[k*n:][:n] }
	for ; k+4 <= len(b); k += 4 {
		x0, a0 := at(k)
		x1, a1 := at(k + 1)
		x2, a2 := at(k + 2)
		x3, a3 := at(k + 3)
		for j := range sum {
			sum[j] += x0*float64(a0[j]) + x1*float64(a1[j]) + x2*float64(a2[j]) + x3*float64(a3[j])
		}
	}
	for ; k < len(b); k++ {
		x, a := at(k)
		for j := range sum {
			sum[j] += x * float64(a[j])
		}
	}
}

// residual compares the weighted sum with the combined B·A, a row at a time.
func residual(path string, terms []term, a, b []float32, rank int) Residual {
	rows, columns := terms[0].rows, terms[0].columns
	combined := term{a: a, b: b, rows: rows, rank: rank, columns: columns}
	type part struct{ most, squares, all float64 }
	parts := make([]part, rows)
	eachRow(rows, func(row int) {
		sum, got := make([]float64, columns), make([]float64, columns)
		for _, t := range terms {
			t.addRow(sum, row, t.weight*t.scale)
		}
		combined.addRow(got, row, 1)
		var p part
		for j, v := range sum {
			d := math.Abs(v - got[j])
			p.most, p.squares, p.all = max(p.most, d), p.squares+d*d, p.all+v*v
		}
		parts[row] = p
	})
	r := Residual{Module: path}
	for _, p := range parts {
		r.Max, r.Frobenius, r.Norm = max(r.Max, p.most), r.Frobenius+p.squares, r.Norm+p.all
	}
	r.Frobenius, r.Norm = math.Sqrt(r.Frobenius), math.Sqrt(r.Norm)
	return r
}

// eachRow calls f for every row, on all cores.
func eachRow(rows int, f func(row int)) {
	workers := min(runtime.GOMAXPROCS(0), rows)
	var wait sync.WaitGroup
	for w := range workers {
		wait.Go(func() {
			for row := w; row < rows; row += workers {
				f(row)
			}
		})
	}
	wait.Wait()
}
