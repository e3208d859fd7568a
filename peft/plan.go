package peft

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/gopeft/gopeft/site"
)

// Plan is what a configuration would do to a base.
type Plan struct {
	PeftType string
	// Config is the configuration completed on the base: default targets filled in.
	Config  Config
	Targets []PlannedTarget
	// Patterns says how many modules each entry of the configuration decided about.
	Patterns []PatternCount
	// VirtualTokens is how many tokens the adapter puts before those of every row.
	VirtualTokens int
	// Count is what [PeftModel.TrainableParameters] would return.
	Count Count
}

// PlannedTarget is one module that would be adapted.
type PlannedTarget struct {
	Module   site.Module
	Settings []Setting
	// Parameters is the number of trainable values at this module.
	Parameters int
	// DropsInput is true where training keeps a copy of the module's input besides: a
	// matrix that is trained multiplies the input after dropout.
	DropsInput bool
}

// InputDropper is an adapter that may drop parts of a module's input before it multiplies
// with a trained matrix, for plans of memory.
type InputDropper interface {
	// DropsInput reports whether it does so at one target.
	DropsInput(m site.Module) bool
}

// DryRun plans an adapter on a base without making it. It fails where
// [GetPeftModel] would.
func DryRun(base site.Base, config Config) (*Plan, error) {
	set, err := newSet(base, config)
	if err != nil {
		return nil, err
	}
	na, err := plan(set.base, config, false, 0)
	if err != nil {
		return nil, err
	}
	return na.describe(set.base), nil
}

// Plan describes an adapter of the model as [DryRun] describes one that is not made yet.
func (pm *PeftModel) Plan(name string) (*Plan, error) {
	na, err := pm.get(name)
	if err != nil {
		return nil, err
	}
	return na.describe(pm.set.base), nil
}

func (na *namedAdapter) describe(base site.Base) *Plan {
	p := &Plan{PeftType: na.config.PeftType(), Config: na.config}
	describer, _ := na.parts[0].(Describer)
	main := map[string]bool{}
	for _, m := range na.parts[0].Targets() {
		main[m.Path] = true
	}
	for _, m := range na.adapter.Targets() {
		t := PlannedTarget{Module: m}
		if describer != nil && main[m.Path] {
			t.Settings = describer.Describe(m)
		}
		if dropper, ok := na.parts[0].(InputDropper); ok && main[m.Path] {
			t.DropsInput = dropper.DropsInput(m)
		}
		p.Targets = append(p.Targets, t)
	}
	if describer != nil {
		p.Patterns = describer.Patterns()
	}
	slots, rows := na.virtualTokens()
	p.VirtualTokens = slots + rows
	p.countParameters(na.layout)
	p.Count.Trainable = na.trainable()
	p.Count.All = na.added()
	for _, parameter := range base.Parameters() {
		p.Count.All += int64(parameter.Size())
	}
	return p
}

// countParameters gives each target the tensors below its path.
func (p *Plan) countParameters(l *Layout) {
	at := make(map[string]int, len(p.Targets))
	for i, t := range p.Targets {
		at[t.Module.Path] = i
	}
	for _, param := range l.Params() {
		for path := param.Name; path != ""; path = path[:max(0, strings.LastIndexByte(path, '.'))] {
			if i, ok := at[path]; ok {
				p.Targets[i].Parameters += param.fileSize()
				break
			}
		}
	}
}

// String is a table with one line a module, the number of virtual tokens, what each entry
// of the configuration matched, and the line of [Count.String].
func (p *Plan) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "module\tkind\tin\tout")
	if len(p.Targets) > 0 {
		for _, s := range p.Targets[0].Settings {
			fmt.Fprint(w, "\t", s.Name)
		}
	}
	fmt.Fprintln(w, "\tparameters")
	for _, t := range p.Targets {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d", t.Module.Path, t.Module.Kind, t.Module.In, t.Module.Out)
		for i := range p.Targets[0].Settings {
			value := "-" // a module that is trained as a whole
			if i < len(t.Settings) {
				value = t.Settings[i].Value
			}
			fmt.Fprint(w, "\t", value)
		}
		fmt.Fprintf(w, "\t%s\n", thousands(int64(t.Parameters)))
	}
	w.Flush() // to a strings.Builder, which cannot fail
	if p.VirtualTokens > 0 {
		fmt.Fprintf(&b, "%d virtual tokens before those of every row\n", p.VirtualTokens)
	}
	for _, c := range p.Patterns {
		fmt.Fprintf(&b, "%s %q: %d modules\n", c.Option, c.Pattern, c.Modules)
	}
	b.WriteString(p.Count.String())
	return b.String()
}
