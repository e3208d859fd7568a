package train

import (
	"runtime/metrics"

	"github.com/gopeft/gopeft/internal/backend"
)

// peakProcessMemory returns the most main memory that this process has had, in
// bytes. Where the system does not tell, it is what the Go runtime has obtained
// so far, which leaves out the memory of other allocators.
func peakProcessMemory() int64 {
	if peak, err := backend.HostPeakRSS(); err == nil {
		return int64(peak)
	}
	return goMemory()
}

// goMemory returns the memory that the Go runtime has mapped, in bytes.
func goMemory() int64 {
	sample := []metrics.Sample{{Name: "/memory/classes/total:bytes"}}
	metrics.Read(sample)
	return int64(sample[0].Value.Uint64())
}
