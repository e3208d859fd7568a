package lora

import (
	"runtime"
	"sync"
)

// product returns s·x·y as row-major float32: x [rows, r], y [r, columns]. Each
// element is a sum in float32 in the order of r, whatever the number of cores.
func product(x, y []float32, rows, r, columns int, s float64) []float32 {
	out := make([]float32, rows*columns)
	workers := min(runtime.GOMAXPROCS(0), rows)
	var wait sync.WaitGroup
	for w := range workers {
		wait.Go(func() {
			for i := w * rows / workers; i < (w+1)*rows/workers; i++ {
				addRow(out[i*columns:(i+1)*columns], x[i*r:(i+1)*r], y, float32(s))
			}
		})
	}
	wait.Wait()
	return out
}

// addRow adds s times the row vector x times the matrix y [len(x), len(row)] to row.
// Four rows of y at a time: one pass over row for each costs most of the time.
func addRow(row, x, y []float32, s float32) {
	n := len(row)
	k := 0
	for ; k+4 <= len(x); k += 4 {
		y0, y1, y2, y3 := y[k*n:][:n], y[(k+1)*n:][:n], y[(k+2)*n:][:n], y[(k+3)*n:][:n]
		x0, x1, x2, x3 := s*x[k], s*x[k+1], s*x[k+2], s*x[k+3]
		for j := range row {
			row[j] = row[j] + x0*y0[j] + x1*y1[j] + x2*y2[j] + x3*y3[j]
		}
	}
	for ; k < len(x); k++ {
		yk, xk := y[k*n:][:n], s*x[k]
		for j := range row {
			row[j] += xk * yk[j]
		}
	}
}
