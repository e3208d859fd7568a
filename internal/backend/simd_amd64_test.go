//go:build goexperiment.simd

package backend

import (
	"bytes"
	"os"
	"strings"
	"sync"
	"testing"
)

// TestWarnSlowExp: the warning says how to cure what is measured, and comes only then.
// With GODEBUG=cpu.fma=off, the cure, it must not come.
func TestWarnSlowExp(t *testing.T) {
	slowdown := expSlowdown()
	warnOnce = sync.Once{}
	var out bytes.Buffer
	warnSlowExp(&out)
	cured := strings.Contains(os.Getenv("GODEBUG"), "cpu.fma=off")
	if cured && (slowdown > 5 || out.Len() > 0) {
		t.Errorf("cured, but Exp is %.0f times slower; it said %q", slowdown, out.String())
	}
	said := strings.Contains(out.String(), "GODEBUG=cpu.fma=off")
	if slowdown > 40 && !said || slowdown < 3 && said { // it warns from 10 on
		t.Errorf("Exp is %.0f times slower after AVX; it said %q", slowdown, out.String())
	}
}
