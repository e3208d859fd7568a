//go:build goexperiment.simd

package backend

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"simd/archsimd"
	"sync"
	"time"
)

var warnOnce sync.Once

// warnSlowExp warns once if math.Exp crawls after an AVX instruction. The Go backend's
// vectorised products leave the upper halves of the registers dirty (no VZEROUPPER), and
// on some processors math.Exp, which mixes SSE and FMA instructions, then takes 100 times
// as long.
func warnSlowExp(w io.Writer) {
	warnOnce.Do(func() {
		if slowdown := expSlowdown(); slowdown > 10 {
			fmt.Fprintf(w, "backend: GOEXPERIMENT=simd makes math.Exp %.0f times slower on this processor: set GODEBUG=cpu.fma=off in the environment, or build without it\n", slowdown)
		}
	})
}

// expSlowdown is the time of math.Exp after an AVX instruction over that before it.
func expSlowdown() float64 {
	if !archsimd.X86.AVX2() {
		return 1
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var lanes [8]float32
	archsimd.ClearAVXUpperBits()
	clean := expTime()
	v := archsimd.LoadFloat32x8(&lanes)
	v.Add(v).Store(&lanes)
	dirty := expTime()
	archsimd.ClearAVXUpperBits()
	return float64(dirty) / float64(max(clean, 1))
}

func expTime() time.Duration {
	best := time.Hour
	for range 3 { // the least of three: a preempted thread is no slow Exp
		start, sum := time.Now(), 0.0
		for i := range 300 {
			sum += math.Exp(float64(i%7) - 3)
		}
		if sum == 0 {
			return 0 // never: keeps the sum alive
		}
		best = min(best, time.Since(start))
	}
	return best
}
