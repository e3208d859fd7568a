package backend

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/ml/model"
)

// Memory is what a compiled program needs on its device, in bytes, by XLA's own analysis.
// It is exact and known before the program runs, unlike an allocator's high-water mark.
type Memory struct {
	Arguments     int64 // all inputs, resident weights included
	Outputs       int64
	Temporaries   int64 // the most alive at once inside the program
	Alias         int64 // outputs that reuse the memory of donated inputs
	GeneratedCode int64
}

// Total is what must fit on the device while the program runs.
func (m Memory) Total() int64 {
	return m.Arguments + m.Outputs - m.Alias + m.Temporaries + m.GeneratedCode
}

// CompiledMemory returns XLA's memory analysis of a compiled program: a *graph.Graph, a
// compute.Executable, or the largest (by Total) of those that a *graph.Exec or a
// *model.Exec has compiled so far. Execs must not be compiling meanwhile.
//
// GoMLX has no call for it: the numbers are exported fields behind unexported ones, which
// are read here through package reflect. A layout that is not the expected one is an
// error, and so is a program that was not compiled yet. A program of the Go backend has
// no analysis: an error that wraps errors.ErrUnsupported (see GoPeak).
func CompiledMemory(program any) (m Memory, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("backend: CompiledMemory of a %T: %v", program, r)
		}
	}()
	executables, err := executablesOf(program)
	if err != nil {
		return Memory{}, err
	}
	if len(executables) == 0 {
		return Memory{}, fmt.Errorf("backend: CompiledMemory: the %T has compiled nothing yet", program)
	}
	for _, e := range executables {
		one, err := analysis(e)
		if err != nil {
			return Memory{}, err
		}
		if one.Total() >= m.Total() {
			m = one
		}
	}
	return m, nil
}

// executablesOf finds the compiled programs behind program.
func executablesOf(program any) ([]reflect.Value, error) {
	switch p := program.(type) {
	case *graph.Graph:
		if p == nil || p.Executable() == nil {
			return nil, nil
		}
		return []reflect.Value{reflect.ValueOf(p.Executable())}, nil
	case compute.Executable:
		return []reflect.Value{reflect.ValueOf(p)}, nil
	case *model.Exec:
		exec, err := field(reflect.ValueOf(p), "exec")
		if err != nil {
			return nil, err
		}
		return cached(exec)
	case *graph.Exec:
		return cached(reflect.ValueOf(p))
	}
	return nil, fmt.Errorf("backend: CompiledMemory wants a *graph.Graph, *graph.Exec, *model.Exec or compute.Executable, got %T", program)
}

// cached lists the executables in a graph.Exec's cache.
func cached(exec reflect.Value) ([]reflect.Value, error) {
	cache, err := field(exec, "cache")
	if err != nil {
		return nil, err
	}
	if cache.Kind() != reflect.Slice {
		return nil, fmt.Errorf("backend: CompiledMemory: graph.Exec.cache is a %s, not the slice that gomlx v0.28 has", cache.Type())
	}
	var executables []reflect.Value
	for i := range cache.Len() {
		g, err := field(cache.Index(i), "graph")
		if err != nil {
			return nil, err
		}
		e, err := field(g, "executable")
		if err != nil {
			return nil, err
		}
		executables = append(executables, e)
	}
	return executables, nil
}

// analysis reads an XLA executable's memory statistics: xla.Executable.exec is a
// *pjrt.LoadedExecutable, whose OnDeviceMemoryUsageStats has the five numbers.
func analysis(executable reflect.Value) (Memory, error) {
	for executable.Kind() == reflect.Interface {
		executable = executable.Elem()
	}
	if executable.Kind() != reflect.Pointer || executable.Type().Elem().PkgPath() != "github.com/gomlx/go-xla/compute/xla" {
		return Memory{}, fmt.Errorf("backend: CompiledMemory: only XLA analyses its programs, not %s: %w", executable.Type(), errors.ErrUnsupported)
	}
	loaded, err := field(executable, "exec")
	if err != nil {
		return Memory{}, err
	}
	stats, err := field(loaded, "OnDeviceMemoryUsageStats")
	if err != nil {
		return Memory{}, err
	}
	var m Memory
	for name, to := range map[string]*int64{
		"Inputs": &m.Arguments, "Outputs": &m.Outputs, "Temporary": &m.Temporaries,
		"Aliases": &m.Alias, "GeneratedCode": &m.GeneratedCode,
	} {
		v, err := field(stats, name)
		if err != nil {
			return Memory{}, err
		}
		if !v.CanInt() {
			return Memory{}, fmt.Errorf("backend: CompiledMemory: pjrt's %s is a %s, not an integer", name, v.Type())
		}
		*to = v.Int()
	}
	return m, nil
}

// field is a field of the struct behind v, exported or not (for reading only).
func field(v reflect.Value, name string) (reflect.Value, error) {
	of := v
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		if v.IsNil() {
			return reflect.Value{}, fmt.Errorf("backend: CompiledMemory: nil %s (finalized, or not compiled yet)", v.Type())
		}
		v = v.Elem()
	}
	if v.Kind() == reflect.Struct {
		if f := v.FieldByName(name); f.IsValid() {
			return f, nil
		}
	}
	return reflect.Value{}, fmt.Errorf("backend: CompiledMemory: %s has no field %s; this code was written for gomlx v0.28 and go-xla v0.4", of.Type(), name)
}
