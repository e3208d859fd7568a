//go:build cgo && !noxla && ((linux && (amd64 || arm64)) || (darwin && arm64) || (windows && amd64))

package train

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/gomlx/go-xla/pjrt"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend"
)

// Large values that were published earlier leave the device when others replace them.
func TestPublishFreesLargeTensors(t *testing.T) {
	if backend.IsGo(testBackend(t)) {
		t.Skip("on the Go backend values are ordinary memory")
	}
	pm := newToyPeft(t, false, toyConfig{Targets: []string{"layers.0.mix"}, Big: true})
	s, st := newTestStepper(t, pm, stepConfig{})
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // the collector does not run by itself
	var alive int64
	for i := range 4 {
		_, err := s.step(t.Context(), st, []Batch{toyBatch(4, 8, uint64(i))}, 1e-3)
		require.NoError(t, err)
		require.NoError(t, st.publish(pm))
		if i == 0 {
			time.Sleep(50 * time.Millisecond) // what was freed is freed by another goroutine
			alive = pjrt.BuffersAlive()
		}
		require.Eventually(t, func() bool { return pjrt.BuffersAlive() <= alive }, 5*time.Second, time.Millisecond, "publication %d", i+1)
	}
	require.NoError(t, st.values[1].CheckValid())
}
