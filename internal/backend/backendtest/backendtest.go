// Package backendtest gives tests the backend they run on.
package backendtest

import (
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
