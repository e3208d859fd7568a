// Package backendtest gives tests the backend they run on.
package backendtest

import (
	"hash/fnv"
	"os"
	"sync"
	"testing"

	"github.com/gomlx/compute"

	"github.com/gopeft/gopeft/internal/backend"
)

// Env names the backend for tests; "go" if it is not set. CI runs the suite twice:
// without it, and with GOPEFT_TEST_BACKEND=xla:/path/to/pjrt_c_api_cpu_plugin.so.
const Env = "GOPEFT_TEST_BACKEND"

var open = sync.OnceValues(func() (compute.Backend, error) {
	name := os.Getenv(Env)
	if name == "" {
		name = "go"
	}
	return backend.Open(name)
})

// Open returns the backend that $GOPEFT_TEST_BACKEND names, the same one to every test of
// the process (never Finalize it), and fails t if it does not open.
func Open(t testing.TB) compute.Backend {
	t.Helper()
	b, err := open()
	if err != nil {
		t.Fatalf("%s: %v", Env, err)
	}
	return b
}

// EnvAll, if set, makes [Sample] run every row.
const EnvAll = "GOPEFT_TEST_ALL"

// Sample skips a row of a table of tests on a backend that compiles for seconds what the Go
// backend runs at once, and in short runs, which are those with the race detector: there
// one row in n runs, always the same ones. Otherwise the Go backend runs all of them, and so
// does any backend with $GOPEFT_TEST_ALL.
func Sample(t testing.TB, n uint32) {
	t.Helper()
	if backend.IsGo(Open(t)) && !testing.Short() || os.Getenv(EnvAll) != "" {
		return
	}
	h := fnv.New32a()
	h.Write([]byte(t.Name()))
	if h.Sum32()%n != 0 {
		t.Skipf("one row in %d runs on this backend, or in a short run; all of them with %s=1", n, EnvAll)
	}
}
