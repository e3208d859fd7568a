package backend

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/gobackend"
)

// openGo opens the Go backend without the dead-lock of its default: each node of a graph
// runs in a slot of a bounded pool and a matrix product inside it waits for more slots of
// the same pool. Nodes one after the other avoid it, and so does an unbounded pool.
func openGo(config string) (compute.Backend, error) {
	name := strings.TrimSuffix("go:"+config, ":")
	options, parallelism, err := goOptions(name, config)
	if err != nil {
		return nil, err
	}
	warnSlowExp(os.Stderr)
	return guard(name, func() (compute.Backend, error) {
		b, err := gobackend.New(options)
		if err != nil || parallelism == nil || setParallelism(b, *parallelism) {
			return b, err
		}
		return gobackend.New(fmt.Sprintf("%s,parallelism=%d", options, *parallelism))
	})
}

// goOptions returns config without its parallelism, which comes back apart (nil if it is
// not set), and with ops_sequential unless the pool is unbounded.
func goOptions(name, config string) (options string, parallelism *int, err error) {
	var kept []string
	for option := range strings.SplitSeq(config, ",") {
		value, isParallelism := strings.CutPrefix(option, "parallelism=")
		switch {
		case option == "":
		case isParallelism:
			n, err := strconv.Atoi(value)
			if err != nil {
				return "", nil, fmt.Errorf("backend: %q: parallelism wants a whole number (-1: unbounded), got %q", name, value)
			}
			parallelism = &n
		default:
			kept = append(kept, option)
		}
	}
	unbounded := parallelism != nil && *parallelism < 0
	if slices.Contains(kept, "ops_parallel") && !unbounded {
		return "", nil, fmt.Errorf("backend: %q: ops_parallel dead-locks in a bounded pool; use go, or go:ops_parallel,parallelism=-1", name)
	}
	if !unbounded && !slices.Contains(kept, "ops_sequential") {
		kept = append(kept, "ops_sequential")
	}
	return strings.Join(kept, ","), parallelism, nil
}

// setParallelism sets the size of b's pool as the option parallelism does, less the line
// that the option prints on standard output. It reports whether it could.
func setParallelism(b compute.Backend, n int) bool {
	v := reflect.Indirect(reflect.ValueOf(b))
	if v.Kind() != reflect.Struct {
		return false
	}
	pool := v.FieldByName("Workers")
	if !pool.IsValid() || !pool.CanInterface() {
		return false
	}
	p, ok := pool.Interface().(interface{ SetMaxParallelism(int) })
	if ok {
		p.SetMaxParallelism(n)
	}
	return ok
}
