package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"github.com/gomlx/compute"
)

// heapObjects counts live objects and dead ones that the collector has not freed yet.
const heapObjects = "/memory/classes/heap/objects:bytes"

// GoPeak runs f and returns the most bytes that objects on Go's heap took meanwhile,
// with all that was alive before: what a program on the Go backend needs, weights
// included. Buffer pools are emptied first.
//
// The number is approximate: the heap is looked at every millisecond, and it includes
// garbage not collected yet (up to as much as is alive, with the default GOGC) and what
// other goroutines allocate. f's error is returned as it is.
func GoPeak(f func() error) (bytes uint64, err error) {
	runtime.GC()
	runtime.GC() // twice: a sync.Pool gives up its contents on the second
	stop, peak := make(chan struct{}), make(chan uint64)
	go func() {
		sample := []metrics.Sample{{Name: heapObjects}}
		var most uint64
		look := func() {
			metrics.Read(sample)
			most = max(most, sample[0].Value.Uint64())
		}
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for look(); ; look() {
			select {
			case <-tick.C:
			case <-stop:
				look()
				peak <- most
				return
			}
		}
	}()
	defer func() { // also when f panics
		close(stop)
		bytes = <-peak
	}()
	return 0, f()
}

// HostPeakRSS returns the most bytes of main memory that this process has had at once
// since it started: VmHWM of /proc/self/status. Elsewhere than on Linux the error wraps
// errors.ErrUnsupported.
func HostPeakRSS() (uint64, error) {
	if runtime.GOOS != "linux" {
		return 0, fmt.Errorf("backend: peak resident memory on %s: %w", runtime.GOOS, errors.ErrUnsupported)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("backend: peak resident memory: %w", err)
	}
	return parseVmHWM(status)
}

func parseVmHWM(status []byte) (uint64, error) {
	for line := range bytes.Lines(status) {
		value, ok := bytes.CutPrefix(line, []byte("VmHWM:"))
		if !ok {
			continue
		}
		fields := strings.Fields(string(value))
		if len(fields) != 2 || fields[1] != "kB" {
			break
		}
		kib, err := strconv.ParseUint(fields[0], 10, 54)
		if err != nil {
			return 0, fmt.Errorf("backend: VmHWM of /proc/self/status: %w", err)
		}
		return kib << 10, nil
	}
	return 0, errors.New("backend: /proc/self/status has no VmHWM in kB")
}

// DeviceMemory returns how many bytes of the GPUs' memory are in use, by all processes,
// and how many there are, by asking nvidia-smi: one element per GPU. XLA's allocator
// takes memory in growing pieces and keeps it, so the first says little about a program's
// need (see CompiledMemory). Backends other than xla:cuda have no memory of their own: an
// error that wraps errors.ErrUnsupported.
func DeviceMemory(ctx context.Context, b compute.Backend) (used, total []uint64, err error) {
	if !IsCUDA(b) {
		return nil, nil, fmt.Errorf("backend: device memory of %q: %w", Kind(b), errors.ErrUnsupported)
	}
	out, err := exec.CommandContext(ctx, "nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits").Output()
	if err != nil {
		return nil, nil, fmt.Errorf("backend: device memory: nvidia-smi: %w", err)
	}
	return parseSMI(out)
}

// parseSMI reads lines of "used, total" in MiB.
func parseSMI(out []byte) (used, total []uint64, err error) {
	for line := range strings.Lines(string(out)) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		a, b, _ := strings.Cut(line, ",")
		u, errU := strconv.ParseUint(strings.TrimSpace(a), 10, 44)
		t, errT := strconv.ParseUint(strings.TrimSpace(b), 10, 44)
		if err := errors.Join(errU, errT); err != nil {
			return nil, nil, fmt.Errorf("backend: nvidia-smi said %q, want two numbers: %w", strings.TrimSpace(line), err)
		}
		used, total = append(used, u<<20), append(total, t<<20)
	}
	return used, total, nil
}
