package rewrite

import (
	"fmt"
	"reflect"

	"github.com/gomlx/gomlx/core/graph"
)

// GoMLX lets a graph be walked (Node.Inputs, Node.Type) and nodes be re-created
// (Node.CloneWithInputs), but keeps an operation's attributes, the decomposed twin of a
// fused node and the marks of checkpoints to itself. They are read by reflection, never
// written; TestInspect fails if a version of GoMLX names them otherwise.

// attribute returns an attribute of the node's operation by the name of its field.
func attribute(n *graph.Node, path ...string) reflect.Value {
	v := reflect.ValueOf(n).Elem().FieldByName("inputs").Elem().Elem()
	for _, name := range path {
		if v.Kind() == reflect.Pointer {
			v = v.Elem()
		}
		field := v.FieldByName(name)
		if !field.IsValid() {
			panic(fmt.Errorf("rewrite: %s has no attribute %q in this version of GoMLX", n.Type(), name))
		}
		v = field
	}
	return v
}

func intAttribute(n *graph.Node, path ...string) int { return int(attribute(n, path...).Int()) }

// intsAttribute returns a list, nil if it is empty or left out.
func intsAttribute(n *graph.Node, path ...string) []int {
	v := attribute(n, path...)
	var out []int
	for i := range v.Len() {
		out = append(out, int(v.Index(i).Int()))
	}
	return out
}

// pairsAttribute returns a list of pairs, count pairs of zeros if it is left out.
func pairsAttribute(n *graph.Node, name string, count int) [][2]int {
	v := attribute(n, name)
	out := make([][2]int, count)
	for i := range v.Len() {
		out[i] = [2]int{int(v.Index(i).Index(0).Int()), int(v.Index(i).Index(1).Int())}
	}
	return out
}

// field returns a field of the node itself.
func field(n *graph.Node, name string) reflect.Value {
	v := reflect.ValueOf(n).Elem().FieldByName(name)
	if !v.IsValid() {
		panic(fmt.Errorf("rewrite: nodes have no field %q in this version of GoMLX", name))
	}
	return v
}

// twin returns the decomposed form of a fused node, through which its gradient is
// computed, or nil. It stands before the node in the graph.
func twin(n *graph.Node) *graph.Node {
	alternates := field(n, "vjpAlternateOutputs")
	if alternates.Len() != 1 || alternates.Index(0).IsNil() {
		return nil
	}
	// The pointer is compared, not dereferenced: reflection cannot return what a private field holds.
	pointer := alternates.Index(0).Pointer()
	nodes := n.Graph().Nodes()
	for id := int(n.Id()) - 1; id >= 0; id-- {
		if reflect.ValueOf(nodes[id]).Pointer() == pointer {
			return nodes[id]
		}
	}
	panic(fmt.Errorf("rewrite: the decomposed form of %s is not in its graph", n.Type()))
}

// barrier is what an OptimizationBarrier is for.
type barrier int

const (
	plainBarrier    barrier = iota
	startCheckpoint         // Node.Checkpoint
	stopCheckpoint          // Node.StopCheckpoint
)

func barrierKind(n *graph.Node) barrier {
	switch {
	case !field(n, "isCheckpointed").Bool():
		return plainBarrier
	case field(n, "needsRematerialization").Bool():
		return startCheckpoint
	}
	return stopCheckpoint
}

// nodeOf returns the node before n that has a value of the backend, nil if there is none.
func nodeOf(n *graph.Node, value reflect.Value) *graph.Node {
	if value = value.Elem(); value.Kind() != reflect.Pointer {
		return nil
	}
	nodes := n.Graph().Nodes()
	for id := int(n.Id()) - 1; id >= 0; id-- {
		values := field(nodes[id], "outputOps")
		for i := range values.Len() {
			if v := values.Index(i).Elem(); v.Kind() == reflect.Pointer && v.Pointer() == value.Pointer() {
				return nodes[id]
			}
		}
	}
	return nil
}
