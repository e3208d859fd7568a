package train

import (
	"fmt"
	"strings"
)

// String is the plan as a table.
func (p *MemoryPlan) String() string { return p.table(nil) }

// Beside is the table with what the compiled program really needs beside it.
func (p *MemoryPlan) Beside(m ProgramMemory) string { return p.table(&m) }

func (p *MemoryPlan) table(compiled *ProgramMemory) string {
	t := memoryTable{compiled: compiled != nil, unit: "MiB", scale: 1 << 20}
	if p.Total() >= 1<<30 {
		t.unit, t.scale = "GiB", 1<<30
	}
	m := ProgramMemory{}
	if compiled != nil {
		m = *compiled
	}
	t.header(fmt.Sprintf("memory of a step on %d x %d tokens, %s", p.Batch, p.Length, t.unit))
	t.part("weights", p.Weights)
	t.part("quantisation statistics", p.Statistics)
	t.part("trained values", p.Adapters)
	t.part("moments", p.Moments)
	t.part("frozen adapters", p.Frozen)
	t.sum("inputs", p.Inputs(), m.Inputs)
	t.part("activations kept", p.Activations)
	t.part("gradients", p.Gradients)
	t.part("trained weights, converted", p.Converted)
	block, loss := "%s", "(%s, at another time)"
	if p.Logits > p.Backward+p.Dequantised {
		block, loss = loss, block
	}
	t.part(fmt.Sprintf(block, "a block's backward pass"), p.Backward)
	t.part(fmt.Sprintf(block, "dequantised weights"), p.Dequantised)
	t.part(fmt.Sprintf(loss, "logits of a chunk"), p.Logits)
	t.part("less what lies in the results", p.Temporaries()-p.alive())
	t.sum("temporaries", p.Temporaries(), m.Temporaries)
	t.sum("program", p.Program(), m.Inputs+m.Temporaries)
	t.part("results of the step", p.Results)
	t.part("idle parameters", p.Idle)
	t.sum("device", p.Total(), m.Total()+p.Idle)
	return t.String()
}

// memoryTable has a column of planned and perhaps one of compiled bytes.
type memoryTable struct {
	strings.Builder
	compiled bool
	unit     string
	scale    float64
}

func (t *memoryTable) header(title string) {
	fmt.Fprintf(t, "%-44s%9s", title, "planned")
	if t.compiled {
		fmt.Fprintf(t, "%10s", "compiled")
	}
	t.WriteByte('\n')
}

// part is a line that only a plan has; nothing is left out.
func (t *memoryTable) part(name string, bytes int64) {
	if bytes != 0 {
		fmt.Fprintf(t, "%-44s%9.2f\n", "  "+name, float64(bytes)/t.scale)
	}
}

func (t *memoryTable) sum(name string, planned, compiled int64) {
	fmt.Fprintf(t, "%-44s%9.2f", name, float64(planned)/t.scale)
	if t.compiled {
		fmt.Fprintf(t, "%10.2f", float64(compiled)/t.scale)
	}
	t.WriteByte('\n')
}

// binarySize writes a number of bytes in MiB or GiB.
func binarySize(bytes int64) string {
	if bytes < 1<<30 {
		return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
	}
	return fmt.Sprintf("%.2f GiB", float64(bytes)/(1<<30))
}
