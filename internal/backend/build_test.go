package backend

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestBuildsWithoutXLA: neither the tag nor a build without cgo takes in go-xla.
func TestBuildsWithoutXLA(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no go command")
	}
	for _, c := range []struct {
		tags, cgo string
		xla       bool
	}{{"noxla", "1", false}, {"", "0", false}, {"", "1", true}} {
		cmd := exec.Command("go", "list", "-deps", "-tags="+c.tags, ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+c.cgo, "GOOS=linux", "GOARCH=amd64")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", cmd, err, out)
		}
		if got := strings.Contains(string(out), "github.com/gomlx/go-xla"); got != c.xla {
			t.Errorf("-tags=%q CGO_ENABLED=%s: go-xla is in the build: %t, want %t", c.tags, c.cgo, got, c.xla)
		}
		if !strings.Contains(string(out), "github.com/gomlx/compute/gobackend") {
			t.Errorf("-tags=%q CGO_ENABLED=%s: the Go backend is missing", c.tags, c.cgo)
		}
	}
}
