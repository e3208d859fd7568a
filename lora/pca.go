package lora

import (
	"math"

	"gonum.org/v1/gonum/mat"

	"github.com/gopeft/gopeft/internal/linalg"
)

// incrementalPCA finds principal components batch by batch (Ross et al. 2008, "Incremental
// learning for robust visual tracking"), as peft's IncrementalPCA does.
type incrementalPCA struct {
	components int // wanted
	key        string

	seen           float64
	mean, variance []float64 // of each feature
	vectors        *mat.Dense
	values         []float64 // singular values
	explained      []float64 // the part of all variance that each component explains
	similar        []float64 // cosine between each component and that before the last batch
}

// add takes a batch X [samples, features], which it changes. It must have at least as many
// samples as there are components.
func (p *incrementalPCA) add(X *mat.Dense) error {
	samples, features := X.Dims()
	n := float64(samples)
	mean, variance := moments64(X)
	total := p.seen + n
	centre(X, mean)
	stacked := X
	if p.vectors != nil {
		// What was known is a matrix with the same scatter: components times their singular
		// values, and a row for how far the mean moved.
		known, _ := p.vectors.Dims()
		stacked = mat.NewDense(known+samples+1, features, nil)
		for i := range known {
			for j := range features {
				stacked.Set(i, j, p.values[i]*p.vectors.At(i, j))
			}
		}
		stacked.Slice(known, known+samples, 0, features).(*mat.Dense).Copy(X)
		factor := math.Sqrt(p.seen / total * n)
		for j := range features {
			stacked.Set(known+samples, j, factor*(p.mean[j]-mean[j]))
		}
		for j := range features {
			moved := p.mean[j] - mean[j]
			variance[j] = (p.variance[j]*p.seen + variance[j]*n + p.seen*n/total*moved*moved) / total
			mean[j] = (p.mean[j]*p.seen + mean[j]*n) / total
		}
	}
	vectors, values, err := p.decompose(stacked)
	if err != nil {
		return err
	}
	var scatter float64
	for _, v := range variance {
		scatter += v * total
	}
	p.explained = make([]float64, len(values))
	for i, v := range values {
		p.explained[i] = v * v / scatter
	}
	p.similar = similarity(p.vectors, vectors)
	p.seen, p.mean, p.variance, p.vectors, p.values = total, mean, variance, vectors, values
	return nil
}

// decompose returns the first right singular vectors as rows, each with its largest element
// positive. Large matrices are decomposed as peft does, by [randomised].
func (p *incrementalPCA) decompose(X *mat.Dense) (*mat.Dense, []float64, error) {
	rows, columns := X.Dims()
	niter, wanted := 4, 2*p.components
	if wanted >= min(rows, columns) || min(rows, columns) <= 256 {
		niter, wanted = exact, p.components
	}
	svd, err := topSingular(X, wanted, niter, seeded(p.key))
	if err != nil {
		return nil, nil, err
	}
	n := min(p.components, len(svd.S))
	vectors := mat.DenseCopyOf(linalg.Columns(svd.V, 0, n).T())
	for i := range n {
		row := vectors.RawRowView(i)
		largest := 0
		for j, v := range row {
			if math.Abs(v) > math.Abs(row[largest]) {
				largest = j
			}
		}
		if row[largest] < 0 {
			for j := range row {
				row[j] = -row[j]
			}
		}
	}
	return vectors, svd.S[:n], nil
}

// similarity is the cosine between the rows of two matrices; nil without the first.
func similarity(a, b *mat.Dense) []float64 {
	if a == nil {
		return nil
	}
	rows, _ := b.Dims()
	out := make([]float64, rows)
	for i := range out {
		x, y := mat.NewVecDense(len(a.RawRowView(i)), a.RawRowView(i)), mat.NewVecDense(len(b.RawRowView(i)), b.RawRowView(i))
		out[i] = mat.Dot(x, y) / (mat.Norm(x, 2) * mat.Norm(y, 2))
	}
	return out
}

// converged reports whether the first n components hardly changed with the last batch.
func (p *incrementalPCA) converged(n int, tau float64) bool {
	if n > 0 && len(p.similar) < n {
		return false
	}
	for _, s := range p.similar[:min(n, len(p.similar))] {
		if !(s >= tau) {
			return false
		}
	}
	return true
}

// moments64 returns mean and variance of each column.
func moments64(X *mat.Dense) (mean, variance []float64) {
	rows, columns := X.Dims()
	mean, variance = make([]float64, columns), make([]float64, columns)
	for i := range rows {
		for j, v := range X.RawRowView(i) {
			mean[j] += v / float64(rows)
		}
	}
	for i := range rows {
		for j, v := range X.RawRowView(i) {
			variance[j] += (v - mean[j]) * (v - mean[j]) / float64(rows)
		}
	}
	return mean, variance
}

func centre(X *mat.Dense, mean []float64) {
	rows, _ := X.Dims()
	for i := range rows {
		row := X.RawRowView(i)
		for j := range row {
			row[j] -= mean[j]
		}
	}
}
