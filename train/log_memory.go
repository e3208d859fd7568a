package train

import (
	"bytes"
	"os"
	"runtime/metrics"
	"strconv"
)

// peakProcessMemory returns the most memory that this process has had in RAM, in
// bytes: VmHWM of Linux. Where there is no /proc it returns what the Go runtime
// has obtained from the system, which leaves out memory of other allocators.
func peakProcessMemory() int64 {
	if status, err := os.ReadFile("/proc/self/status"); err == nil {
		if peak, ok := parseVmHWM(status); ok {
			return peak
		}
	}
	sample := []metrics.Sample{{Name: "/memory/classes/total:bytes"}}
	metrics.Read(sample)
	return int64(sample[0].Value.Uint64())
}

func parseVmHWM(status []byte) (peak int64, ok bool) {
	for line := range bytes.Lines(status) {
		value, found := bytes.CutPrefix(line, []byte("VmHWM:"))
		if !found {
			continue
		}
		kib, found := bytes.CutSuffix(bytes.TrimSpace(value), []byte(" kB"))
		n, err := strconv.ParseInt(string(kib), 10, 53)
		return n << 10, found && err == nil && n > 0
	}
	return 0, false
}
